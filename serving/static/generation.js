// POST /v1/completions: a text as it is written, or the search for a likely one.

import { $, element, fillModels, onCtrlEnter, percent, post, readJson, showError, timing } from "./page.js";
import { drawTree, path, visible } from "./tree.js";

const ALTERNATIVES = 5;
const SURPRISE = 8; // bits at which a token has the strongest colour
let models = [];
let running = null;
let tokens = []; // of the text that is shown: {text, logProb, top}
let at = -1;
let searched = null;
let hypothesis = 0;

const number = (id) => Number($(id).value);
const searching = () => $("mode").value === "beam";

export const generation = {
  path: "v1/completions",
  show(live) {
    models = live;
    fillModels($("writer"), models, (model) => {
      const figures = model.metrics.test ?? model.metrics.validation ?? {};
      const bits = figures.bits_per_character;
      return bits === undefined ? "" : `${bits.toFixed(2)} bits/character`;
    });
    fit();
  },
  chosen: () => models.find((model) => model.id === $("writer").value),
  body() {
    const request = { prompt: $("prompt").value, logprobs: ALTERNATIVES };
    const chosen = generation.chosen();
    if (chosen && (!chosen.default || chosen.weight < 1)) request.model = chosen.id;
    if (chosen?.conditions.length) request.condition = $("condition").value;
    if (chosen?.features) request.condition = $("features").value.split(/[\s,;]+/).filter(Boolean).map(Number);
    if (searching()) {
      const beams = number("beam-size");
      Object.assign(request, { max_tokens: number("beam-tokens"), beam_size: beams, n: Math.min(beams, 5) });
      Object.assign(request, { length_penalty: number("length-penalty"), return_beams: true });
    } else {
      Object.assign(request, { max_tokens: number("max-tokens"), temperature: number("temperature") });
      Object.assign(request, { top_p: number("top-p") });
      if ($("seed").value) request.seed = number("seed");
      request.stream = true;
    }
    return request;
  },
};

// Show the controls that the chosen model and mode have.
function fit() {
  const chosen = generation.chosen();
  $("condition-field").hidden = !chosen?.conditions.length;
  $("features-field").hidden = !chosen?.features;
  if (chosen?.features) $("features").placeholder = `${chosen.features} numbers`;
  const known = [...$("condition").options].map((option) => option.value);
  if (chosen && chosen.conditions.join("\n") !== known.join("\n")) {
    $("condition").replaceChildren(...chosen.conditions.map((name) => element("option", "", name)));
  }
  for (const field of document.querySelectorAll("[data-mode]")) field.hidden = field.dataset.mode !== $("mode").value;
  for (const output of $("writing").querySelectorAll("output")) output.value = $(output.htmlFor.value).value;
}

function show(token, index) {
  const span = element("span", "rare", token.text);
  const strength = token.logProb === null ? 0 : Math.min(1, -token.logProb / Math.LN2 / SURPRISE);
  span.style.setProperty("--strength", (0.65 * strength).toFixed(3));
  span.dataset.index = index;
  return span;
}

function write(choice) {
  const columns = choice.logprobs;
  const parts = [];
  // A text that ends before a stop text is shorter than its tokens.
  if (columns?.tokens.join("") === choice.text) {
    columns.tokens.forEach((text, i) =>
      parts.push({ text, logProb: columns.token_logprobs[i], top: columns.top_logprobs?.[i] ?? {} }),
    );
  } else if (choice.text) {
    parts.push({ text: choice.text, logProb: null, top: {} });
  }
  $("continuation").append(...parts.map((token, i) => show(token, tokens.length + i)));
  tokens.push(...parts);
}

function point(index) {
  $("continuation").querySelector(".here")?.classList.remove("here");
  at = index;
  const token = tokens[at];
  $("token").textContent = "";
  if (!token || token.logProb === null) return;
  const here = $("continuation").querySelector(`[data-index="${at}"]`);
  here.classList.add("here");
  here.scrollIntoView({ block: "nearest" });
  const rest = Object.entries(token.top).filter(([text]) => text !== token.text).sort((a, b) => b[1] - a[1]);
  const others = rest.slice(0, ALTERNATIVES).map(([text, logProb]) => `${visible(text)} ${percent(Math.exp(logProb))}`);
  const said = `${visible(token.text)} ${percent(Math.exp(token.logProb))}`;
  $("token").textContent = others.length ? `${said}; others: ${others.join(", ")}` : said;
}

function clear(prompt) {
  tokens = [];
  point(-1);
  $("continuation").replaceChildren(element("span", "given", prompt));
}

function note(notes) {
  $("notes").hidden = !notes?.length;
  $("notes").textContent = (notes ?? []).join("\n");
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n");
      const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const content = JSON.parse(data);
      if (content.error) throw new Error(content.error.message);
      yield content;
    }
  }
}

async function stream(request, signal) {
  const began = performance.now();
  const response = await post(generation.path, request, signal);
  if (!response.ok) await readJson(response);
  let first = null;
  let seed = null;
  let ended = null;
  const notes = [];
  const progress = () => {
    const seconds = (performance.now() - (first ?? began)) / 1000;
    const rate = tokens.length > 1 && seconds > 0 ? `${((tokens.length - 1) / seconds).toFixed(0)} tokens a second` : "";
    const wait = first === null ? "" : `first after ${(first - began).toFixed(0)} ms`;
    const end = { stop: "the text ended", length: "it has all its tokens" }[ended];
    const said = [`${tokens.length} tokens`, rate, wait, seed === null ? "" : `seed ${seed}`, end ?? ""];
    $("progress").textContent = said.filter(Boolean).join(", ");
  };
  try {
    for await (const chunk of events(response)) {
      first ??= performance.now();
      seed = chunk.seed ?? seed;
      notes.push(...(chunk.notes ?? []));
      for (const choice of chunk.choices) {
        write(choice);
        ended = choice.finish_reason ?? ended;
      }
    }
    if (ended === null) throw new Error("The stream broke off.");
  } finally {
    note(notes);
    progress();
  }
}

async function search(request, signal) {
  const began = performance.now();
  const response = await post(generation.path, request, signal);
  searched = await readJson(response);
  note(searched.notes);
  $("progress").textContent = timing(response, began);
  choose(0);
}

// Show one hypothesis of the search, and its way through the tree.
function choose(index) {
  hypothesis = index;
  const choice = searched.choices[index];
  clear($("continuation").firstChild?.textContent ?? "");
  write(choice);
  $("hypotheses").replaceChildren(
    ...searched.choices.map((one, i) => {
      const item = element("li");
      const button = element("button", "plain", visible(one.text));
      button.type = "button";
      button.setAttribute("aria-pressed", String(i === index));
      button.addEventListener("click", () => {
        choose(i);
        $("hypotheses").children[i].firstChild.focus();
      });
      item.append(button, element("span", "score", `log-probability ${one.score.toFixed(2)}`));
      return item;
    }),
  );
  showTree();
}

function showTree() {
  const beams = searched?.beams ?? [];
  $("search").hidden = !beams.length;
  if (!beams.length) return;
  const chosen = path(beams, searched.choices[hypothesis].score);
  $("tree").replaceChildren(drawTree(beams, chosen, $("pruned").checked));
}

// One button takes the place of the other, and the focus with it.
function swap(from, to) {
  const focused = document.activeElement === $(from);
  $(from).hidden = true;
  $(to).hidden = false;
  if (focused) $(to).focus();
}

async function run() {
  if (running) return;
  running = new AbortController();
  swap("write", "stop");
  $("continuation").setAttribute("aria-busy", "true");
  $("error").hidden = true;
  $("written").hidden = false;
  searched = null;
  $("search").hidden = true;
  $("hypotheses").hidden = !searching();
  $("hypotheses").replaceChildren();
  $("progress").textContent = "";
  note([]);
  const request = generation.body();
  clear(request.prompt);
  try {
    await (request.stream ? stream : search)(request, running.signal);
  } catch (error) {
    if (error.name === "AbortError") {
      $("progress").textContent = [$("progress").textContent, "stopped"].filter(Boolean).join(", ");
    } else {
      showError(error);
      $("written").hidden = !tokens.length;
    }
  } finally {
    running = null;
    swap("stop", "write");
    $("continuation").removeAttribute("aria-busy");
  }
}

$("writing").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("writing").addEventListener("input", fit);
$("stop").addEventListener("click", () => running?.abort());
addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
onCtrlEnter($("prompt"), run);
$("colour").addEventListener("change", () => $("continuation").classList.toggle("coloured", $("colour").checked));
$("pruned").addEventListener("change", showTree);
$("continuation").addEventListener("pointerover", ({ target }) => target.dataset.index && point(Number(target.dataset.index)));
$("continuation").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || !tokens.length) return;
  event.preventDefault();
  point(Math.min(Math.max(at + step, 0), tokens.length - 1));
});
for (const shown of document.querySelectorAll(".rare[data-strength]")) {
  shown.style.setProperty("--strength", (0.65 * Number(shown.dataset.strength)).toFixed(3));
}

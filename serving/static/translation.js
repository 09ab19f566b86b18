// POST /translate: a text in another language, and where the model looked.

import { drawAttention, say } from "./attention.js";
import { $, call, element, fillModels, onCtrlEnter, post, readJson, showError, timing } from "./page.js";

let models = [];
let pairs = []; // {source, target, models: ids}
let sentences = [];
let shown = -1; // the sentence whose attention is drawn
let at = { row: 0, column: 0 };

const number = (id) => Number($(id).value);
const pair = () => pairs[$("pair").value];

export const translation = {
  path: "translate",
  async show(live) {
    models = live;
    const languages = await readJson(await call("languages"));
    const names = new Map(languages.map((language) => [language.code, language.name]));
    const known = languages.flatMap(({ code, models }) =>
      Object.entries(models).map(([target, ids]) => ({ source: code, target, models: ids })),
    );
    const several = (target) => known.filter((one) => one.target === target).length > 1;
    const found = [...new Set(known.map((one) => one.target))].filter(several);
    const named = new Set(known.flatMap((one) => one.models));
    pairs = [
      ...known,
      ...found.map((target) => ({ source: "auto", target, models: [] })),
      // A model that does not know its languages is asked by its name.
      ...live.filter(({ id }) => !named.has(id)).map(({ id }) => ({ source: "", target: "", models: [id] })),
    ];
    names.set("auto", "Detect");
    $("pair").replaceChildren(
      ...pairs.map(({ source, target, models }, index) => {
        const option = element("option", "", source ? `${names.get(source)} → ${names.get(target)}` : models[0]);
        option.value = index;
        return option;
      }),
    );
    fit();
  },
  chosen: () => models.find((model) => model.id === $("translator").value),
  body() {
    const { source = "", target = "", models: ids = [] } = pair() ?? {};
    const request = { q: $("source-text").value, source, target };
    const chosen = translation.chosen();
    if (chosen && (!source || chosen.id !== ids[0])) request.model = chosen.id;
    Object.assign(request, { beam_size: number("beams"), alternatives: number("alternatives"), return_scores: true });
    if ($("looks").checked) request.return_attention = true;
    return request;
  },
};

// Show the models of the chosen pair, and only as many alternatives as the search can find.
function fit() {
  const ids = pair()?.models ?? [];
  const fitting = models.filter((model) => ids.includes(model.id));
  fillModels($("translator"), fitting, (model) => {
    const bleu = (model.metrics.test ?? model.metrics.validation ?? {}).bleu;
    return bleu === undefined ? "" : `BLEU ${bleu.toFixed(1)}`;
  });
  $("translator-field").hidden = !fitting.length;
  adjust();
}

function adjust() {
  $("alternatives").max = number("beams") - 1;
  for (const output of $("translating").querySelectorAll("output")) output.value = $(output.htmlFor.value).value;
}

function point(row, column) {
  const { source_tokens: read, target_tokens: written } = sentences[shown];
  at = { row: Math.min(Math.max(row, 0), written.length - 1), column: Math.min(Math.max(column, 0), read.length - 1) };
  $("attention").querySelector(".here")?.classList.remove("here");
  const cell = $("attention").querySelector(`[data-row="${at.row}"][data-column="${at.column}"]`);
  cell?.classList.add("here");
  $("look").textContent = say(sentences[shown], at.row, at.column);
  return cell;
}

function look(index) {
  shown = index;
  at = { row: 0, column: 0 };
  $("look").textContent = "";
  const { attention } = sentences[index];
  $("attended").hidden = !attention?.length;
  $("attention").replaceChildren(...(attention?.length ? [drawAttention(sentences[index])] : []));
  [...$("sentences").querySelectorAll("button")].forEach((button, i) =>
    button.setAttribute("aria-pressed", String(i === index)),
  );
}

function sentence(one, index) {
  const item = element("li");
  const button = element("button", "plain");
  button.type = "button";
  button.append(element("span", "given", one.source), element("span", "", one.translation));
  button.addEventListener("click", () => look(index));
  const said = `score ${one.score.toFixed(2)}, log-probability ${one.log_prob.toFixed(2)}`;
  item.append(button, element("span", "score", one.finished ? said : `${said}, cut off`));
  return item;
}

function show(answer, request) {
  $("translated-text").textContent = answer.translatedText;
  const detected = answer.detectedLanguage;
  const taken = detected ? [`Taken for ${detected.language}, ${detected.confidence.toFixed(0)} % sure.`] : [];
  const blind = request.return_attention && !answer.sentences.some((one) => one.attention);
  const said = [...taken, ...answer.notices, ...(blind ? ["This model has no attention to show."] : [])];
  $("notices").textContent = said.join("\n");
  $("notices").hidden = !$("notices").textContent;
  const others = answer.alternatives ?? [];
  $("others").hidden = !others.length;
  $("others").replaceChildren(...others.map((text) => element("li", "", text)));
  sentences = answer.sentences;
  $("sentences").replaceChildren(...sentences.map(sentence));
  if (sentences.length) look(0);
}

async function translate() {
  if ($("translate").disabled) return;
  $("translate").disabled = true;
  $("translating").setAttribute("aria-busy", "true");
  const began = performance.now();
  try {
    const request = translation.body();
    const response = await post(translation.path, request);
    show(await readJson(response), request);
    $("translated-timing").textContent = timing(response, began);
    $("error").hidden = true;
    $("translated").hidden = false;
  } catch (error) {
    showError(error);
    $("translated").hidden = true;
  } finally {
    $("translate").disabled = false;
    $("translating").removeAttribute("aria-busy");
  }
}

$("translating").addEventListener("submit", (event) => {
  event.preventDefault();
  translate();
});
$("translating").addEventListener("input", adjust);
$("pair").addEventListener("input", fit);
onCtrlEnter($("source-text"), translate);
$("attention").addEventListener("pointerover", ({ target }) => {
  if (target.dataset.row) point(Number(target.dataset.row), Number(target.dataset.column));
});
$("attention").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!step) return;
  event.preventDefault();
  point(at.row + step[0], at.column + step[1])?.scrollIntoView({ block: "nearest", inline: "nearest" });
});

// POST /v1/sentiment: labels, and what speaks for the best one.

import { $, element, fillModels, onCtrlEnter, percent, post, readJson, showError, timing } from "./page.js";

const MOST_TOKENS = 5000;
let models = [];

export const sentiment = {
  path: "v1/sentiment",
  show(live) {
    models = live;
    fillModels($("model"), models, (model) => {
      const accuracy = (model.metrics.test ?? model.metrics.validation ?? {}).accuracy;
      return accuracy === undefined ? "" : `${percent(accuracy)} right`;
    });
  },
  chosen: () => models.find((model) => model.id === $("model").value),
  body() {
    const request = { inputs: $("text").value };
    if ($("explain").checked) request.explain = true;
    const chosen = sentiment.chosen();
    if (chosen && (!chosen.default || chosen.weight < 1)) request.model = chosen.id;
    return request;
  },
};

function showLabels(labels) {
  $("labels").replaceChildren(
    ...labels.map(({ label, score }) => {
      const item = element("li");
      const bar = element("span", "bar");
      bar.setAttribute("aria-hidden", "true");
      const fill = element("span");
      fill.style.width = `${100 * score}%`;
      bar.append(fill);
      item.append(element("span", "name", label), bar, element("span", "score", percent(score)));
      return item;
    }),
  );
}

function showTokens(text, best) {
  $("explanation").hidden = !best.tokens;
  if (!best.tokens) return;
  // Offsets count code points; a JavaScript string counts UTF-16 units.
  const points = Array.from(text);
  const tokens = best.tokens.slice(0, MOST_TOKENS);
  const strongest = Math.max(...tokens.map((token) => Math.abs(token.weight)), Number.MIN_VALUE);
  const parts = [];
  let at = 0;
  for (const token of tokens) {
    parts.push(points.slice(at, token.start).join(""));
    const share = Math.abs(token.weight) / strongest;
    const span = element("span", "token", points.slice(token.start, token.end).join(""));
    if (share >= 0.04) span.classList.add(token.weight > 0 ? "for" : "against");
    span.style.setProperty("--strength", (0.5 * share).toFixed(3));
    span.style.setProperty("--line-strength", (0.25 + 0.75 * share).toFixed(3));
    span.title = `${token.weight > 0 ? "+" : ""}${token.weight.toFixed(3)}`;
    parts.push(span);
    at = token.end;
  }
  const rest = best.tokens.length - tokens.length;
  parts.push(rest ? ` ... and ${rest} more tokens` : points.slice(at).join(""));
  $("tokens").replaceChildren(...parts);
  $("chosen").textContent = best.label;
}

async function ask() {
  if ($("ask").disabled) return;
  $("ask").disabled = true;
  $("form").setAttribute("aria-busy", "true");
  const request = sentiment.body();
  const began = performance.now();
  try {
    const response = await post(sentiment.path, request);
    const labels = await readJson(response);
    showLabels(labels);
    showTokens(request.inputs, labels[0]);
    $("timing").textContent = timing(response, began);
    $("error").hidden = true;
    $("answer").hidden = false;
  } catch (error) {
    showError(error);
    $("answer").hidden = true;
  } finally {
    $("ask").disabled = false;
    $("form").removeAttribute("aria-busy");
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
onCtrlEnter($("text"), ask);

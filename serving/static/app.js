// The playground: the page a person sees makes the same calls a program would.
// What comes from a user or a model is inserted with textContent only.

const $ = (id) => document.getElementById(id);
const MOST_TOKENS = 5000;
const COMMAND_LIMIT = 2000;
let models = [];

function body() {
  const request = { inputs: $("text").value };
  if ($("explain").checked) request.explain = true;
  const chosen = models.find((model) => model.id === $("model").value);
  if (chosen && !chosen.default) request.model = chosen.id;
  return request;
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function command() {
  const url = new URL("v1/sentiment", document.baseURI).href;
  const json = JSON.stringify(body()).replaceAll("'", "'\\''");
  return `curl '${url.replaceAll("'", "%27")}' \\\n  -H 'Content-Type: application/json' \\\n  -d '${json}'`;
}

function showCommand() {
  const text = command();
  $("call").textContent = text.length > COMMAND_LIMIT ? `${text.slice(0, COMMAND_LIMIT)} ...` : text;
}

function showError(message) {
  $("error").textContent = message;
  $("error").hidden = false;
  $("answer").hidden = true;
}

async function readJson(response) {
  const content = await response.json().catch(() => null);
  if (response.ok && content !== null) return content;
  const problem = content ?? {};
  const details = (problem.errors ?? []).map((one) => `${one.field}: ${one.detail}`);
  const lines = [problem.title ?? `The server says ${response.status} ${response.statusText}`];
  lines.push(...(details.length ? details : [problem.detail ?? ""]));
  if (response.status >= 500 && problem.request_id) lines.push(`Request ${problem.request_id}`);
  throw new Error(lines.filter(Boolean).join("\n"));
}

function percent(score) {
  const digits = score > 0.001 && score < 0.999 ? 1 : 3;
  return `${(100 * score).toFixed(digits)} %`;
}

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

function showTiming(response, took) {
  const parts = [];
  for (const entry of (response.headers.get("Server-Timing") ?? "").split(",")) {
    const found = /^\s*(\w+);dur=([\d.]+)/.exec(entry);
    if (found) parts.push(`${found[1]} ${found[2]} ms`);
  }
  $("timing").textContent = [...parts, `round trip ${took.toFixed(1)} ms`].join(", ");
}

async function ask() {
  if ($("ask").disabled) return;
  $("ask").disabled = true;
  $("form").setAttribute("aria-busy", "true");
  const request = body();
  const began = performance.now();
  try {
    const response = await fetch("v1/sentiment", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request),
    });
    const labels = await readJson(response);
    showLabels(labels);
    showTokens(request.inputs, labels[0]);
    showTiming(response, performance.now() - began);
    $("error").hidden = true;
    $("answer").hidden = false;
  } catch (error) {
    showError(error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message);
  } finally {
    $("ask").disabled = false;
    $("form").removeAttribute("aria-busy");
  }
}

function showCard() {
  const chosen = models.find((model) => model.id === $("model").value);
  $("card").hidden = !chosen;
  if (chosen) $("card").href = chosen.card;
}

async function showModels() {
  try {
    const list = await readJson(await fetch("v1/models"));
    models = list.data.filter((model) => model.task === "sentiment");
    if (!models.length) throw new Error("No sentiment model is live.");
    $("model").replaceChildren(
      ...models.map((model) => {
        const figures = model.metrics.test ?? model.metrics.validation ?? {};
        const accuracy = figures.accuracy === undefined ? "" : `, ${percent(figures.accuracy)} right`;
        const option = element("option", "", `${model.id}${accuracy}`);
        option.value = model.id;
        return option;
      }),
    );
  } catch (error) {
    showError(error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message);
  }
  showCard();
  showCommand();
}

async function copy() {
  try {
    await navigator.clipboard.writeText(command());
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("call"));
    $("copy").textContent = "Selected";
  }
  setTimeout(() => ($("copy").textContent = "Copy"), 1500);
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("form").addEventListener("input", showCommand);
$("model").addEventListener("change", showCard);
$("copy").addEventListener("click", copy);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    ask();
  }
});
fetch("docs", { method: "HEAD" }).then((response) => ($("docs").hidden = !response.ok), () => {});
showModels();

// What every panel of the page needs.
// What comes from a user or a model is inserted with textContent only.

export const $ = (id) => document.getElementById(id);

export function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export function showError(error) {
  const away = error instanceof TypeError;
  $("error").textContent = away ? "The server does not answer. Is it still running?" : error.message;
  $("error").hidden = false;
}

export async function readJson(response) {
  const content = await response.json().catch(() => null);
  if (response.ok && content !== null) return content;
  const problem = content ?? {};
  if (problem.error) throw new Error(problem.error.message);
  const details = (problem.errors ?? []).map((one) => `${one.field}: ${one.detail}`);
  const lines = [problem.title ?? `The server says ${response.status} ${response.statusText}`];
  lines.push(...(details.length ? details : [problem.detail ?? ""]));
  if (response.status >= 500 && problem.request_id) lines.push(`Request ${problem.request_id}`);
  throw new Error(lines.filter(Boolean).join("\n"));
}

export const hasKey = () => sessionStorage.getItem("key") !== null;

// Like fetch, with the key that a person gave; where one is missing or wrong, the page asks for it.
export async function call(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = key === null ? options.headers : { ...options.headers, Authorization: `Bearer ${key}` };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) $("door").hidden = false;
  return response;
}

export function post(path, body, signal) {
  return call(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

export function percent(share) {
  const digits = share > 0.001 && share < 0.999 ? 1 : 3;
  return `${(100 * share).toFixed(digits)} %`;
}

export function timing(response, began) {
  const parts = [];
  for (const entry of (response.headers.get("Server-Timing") ?? "").split(",")) {
    const found = /^\s*(\w+);dur=([\d.]+)/.exec(entry);
    if (found) parts.push(`${found[1]} ${found[2]} ms`);
  }
  return [...parts, `round trip ${(performance.now() - began).toFixed(1)} ms`].join(", ");
}

export function fillModels(select, models, figure) {
  select.replaceChildren(
    ...models.map((model) => {
      // The registry counts its versions; a bundle from elsewhere has a part of its digest, which tells a person nothing.
      const counted = /^\d{1,6}$/.test(model.version ?? "") && !model.id.endsWith(`/${model.version}`);
      const version = counted ? `version ${model.version}` : "";
      const option = element("option", "", [model.id, version, figure(model)].filter(Boolean).join(", "));
      option.value = model.id;
      return option;
    }),
  );
}

export function onCtrlEnter(area, act) {
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      act();
    }
  });
}

// The playground: the page a person sees makes the same calls a program would.

import { generation } from "./generation.js";
import { $, call, hasKey, readJson, showError } from "./page.js";
import { sentiment } from "./sentiment.js";
import { translation } from "./translation.js";

const COMMAND_LIMIT = 2000;
const panels = { sentiment, generation, translation };
const answers = { sentiment: "answer", generation: "written", translation: "translated" };
let live = [];
let current = "sentiment";

function command() {
  const body = panels[current].body();
  const url = new URL(panels[current].path, document.baseURI).href;
  const json = JSON.stringify(body).replaceAll("'", "'\\''");
  const kind = `-H 'Content-Type: application/json'${hasKey() ? ' -H "Authorization: Bearer $KEY"' : ""}`;
  return `curl ${body.stream ? "-N " : ""}'${url.replaceAll("'", "%27")}' \\\n  ${kind} \\\n  -d '${json}'`;
}

function showCall() {
  const text = command();
  $("call").textContent = text.length > COMMAND_LIMIT ? `${text.slice(0, COMMAND_LIMIT)} ...` : text;
  const chosen = panels[current].chosen();
  $("card").hidden = !chosen;
  if (chosen) $("card").href = chosen.card;
}

// The panel that the address names, or the first that has a model.
function showPanel() {
  const asked = location.hash.slice(1);
  const next = live.includes(asked) ? asked : (live[0] ?? "sentiment");
  if (next !== current) {
    $("error").hidden = true;
    $(answers[current]).hidden = true;
  }
  current = next;
  for (const name of Object.keys(panels)) $(name).hidden = name !== current;
  for (const link of $("panels").children) {
    if (link.hash === `#${current}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  showCall();
}

async function showModels() {
  try {
    const list = await readJson(await call("v1/models"));
    const fitting = (name) => list.data.filter((model) => model.task === name);
    live = Object.keys(panels).filter((name) => fitting(name).length);
    for (const name of live) await panels[name].show(fitting(name));
    $("panels").hidden = live.length < 2;
    for (const link of $("panels").children) link.hidden = !live.includes(link.hash.slice(1));
    if (!live.length) throw new Error("No model is live that this page has a panel for.");
  } catch (error) {
    showError(error);
  }
  showPanel();
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

document.querySelector("main").addEventListener("input", showCall);
$("copy").addEventListener("click", copy);
$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value.trim());
  $("key").value = "";
  $("door").hidden = $("error").hidden = true;
  showModels();
});
addEventListener("hashchange", showPanel);
fetch("docs", { method: "HEAD" }).then((response) => ($("docs").hidden = !response.ok), () => {});
showModels();

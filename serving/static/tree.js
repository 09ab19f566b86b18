// The tree of a beam search as SVG: a column for each step, its candidates from the best down.

const SVG = "http://www.w3.org/2000/svg";
const COLUMN = 92;
const ROW = 34;
const BOX = { width: 58, height: 26 };
const MOST_STEPS = 100;

export function draw(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// White space and the end of a text are seen only if they are drawn as something.
export function visible(token) {
  return token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";
}

function shortened(token) {
  const points = Array.from(visible(token));
  return points.length > 7 ? `${points.slice(0, 6).join("")}…` : points.join("");
}

// The hypothesis with this score: [index in its column] from its last step to its first, by step.
export function path(beams, score) {
  let end = null;
  beams.forEach((nodes, step) =>
    nodes.forEach((node, index) => {
      const ends = node.kept && (node.finished || step === beams.length - 1);
      const off = Math.abs(node.score - score);
      if (ends && (end === null || off < end.off)) end = { step, index, off };
    }),
  );
  const found = new Map();
  for (let { step, index } = end ?? { step: -1, index: -1 }; step >= 0; step -= 1) {
    found.set(step, index);
    index = beams[step][index].parent;
  }
  return found;
}

export function drawTree(beams, chosen, withPruned) {
  const steps = beams.slice(0, MOST_STEPS);
  const rows = steps.map((nodes) => {
    const order = nodes.map((_, index) => index).filter((index) => withPruned || nodes[index].kept);
    order.sort((a, b) => nodes[b].kept - nodes[a].kept || nodes[b].score - nodes[a].score);
    return new Map(order.map((index, row) => [index, row]));
  });
  const width = steps.length * COLUMN + 8;
  const height = Math.max(...rows.map((row) => row.size), 1) * ROW + 8;
  const edges = draw("g", {});
  const boxes = draw("g", {});
  const left = (step) => 4 + step * COLUMN;
  const middle = (step, index) => 4 + rows[step].get(index) * ROW + BOX.height / 2;
  steps.forEach((nodes, step) => {
    for (const index of rows[step].keys()) {
      const node = nodes[index];
      const kind = `${node.kept ? "kept" : "cut"}${chosen.get(step) === index ? " chosen" : ""}`;
      const [x, y] = [left(step), middle(step, index)];
      if (step > 0 && rows[step - 1].has(node.parent)) {
        const [from, to] = [left(step - 1) + BOX.width, (left(step - 1) + BOX.width + x) / 2];
        const above = middle(step - 1, node.parent);
        edges.append(draw("path", { class: `edge ${kind}`, d: `M${from} ${above}C${to} ${above} ${to} ${y} ${x} ${y}` }));
      }
      const box = draw("g", { class: `node ${kind}` });
      const share = Math.exp(node.log_prob);
      const fate = node.finished ? "ends a text" : node.kept ? "searched further" : "pruned";
      const said = `${visible(node.token)}: ${(100 * share).toPrecision(3)} %, log-probability so far ${node.score.toFixed(2)}, ${fate}`;
      const place = { x, y: y - BOX.height / 2, rx: 6, ...BOX };
      box.append(draw("title", {}, said), draw("rect", place));
      if (node.finished) {
        const inner = { x: x + 3, y: place.y + 3, rx: 4, width: BOX.width - 6, height: BOX.height - 6 };
        box.append(draw("rect", { ...inner, class: "end" }));
      }
      box.append(
        draw("text", { x: x + BOX.width / 2, y: y - 1, class: "what" }, shortened(node.token)),
        draw("text", { x: x + BOX.width / 2, y: y + 9, class: "share" }, `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`),
      );
      boxes.append(box);
    }
  });
  const kept = steps.flat().filter((node) => node.kept).length;
  const label = `${steps.length} steps; ${kept} candidates kept, ${steps.flat().length - kept} pruned`;
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  svg.append(edges, boxes);
  return svg;
}

// Where a translator looked: a row for each token it wrote, a column for each token it read.

import { percent } from "./page.js";
import { draw, visible } from "./tree.js";

const CELL = 22;
const LETTER = 7; // width of a letter of a label
const LONGEST = 14;
const MOST_TOKENS = 80;

function label(token) {
  const points = Array.from(visible(token));
  return points.length > LONGEST ? `${points.slice(0, LONGEST - 1).join("")}…` : points.join("");
}

function widest(tokens) {
  return Math.max(0, ...tokens.map((token) => Array.from(label(token)).length)) * LETTER + 8;
}

export function say(sentence, row, column) {
  const [written, read] = [sentence.target_tokens[row], sentence.source_tokens[column]];
  return `“${visible(written)}” looks at “${visible(read)}”: ${percent(sentence.attention[row][column])}`;
}

export function drawAttention(sentence) {
  const written = sentence.target_tokens.slice(0, MOST_TOKENS);
  const read = sentence.source_tokens.slice(0, MOST_TOKENS);
  const [left, top] = [widest(written), widest(read)];
  const width = left + read.length * CELL + 0.7 * top;
  const height = top + written.length * CELL + 2;
  const name = `Attention, ${written.length} tokens written by ${read.length} tokens read`;
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name });
  read.forEach((token, column) => {
    const [x, y] = [left + (column + 0.6) * CELL, top - 4];
    const text = draw("text", { class: "read", x, y, transform: `rotate(-50 ${x} ${y})` }, label(token));
    text.append(draw("title", {}, visible(token)));
    svg.append(text);
  });
  written.forEach((token, row) => {
    const y = top + row * CELL;
    const text = draw("text", { class: "written", x: left - 5, y: y + CELL / 2 + 4 }, label(token));
    text.append(draw("title", {}, visible(token)));
    svg.append(text);
    read.forEach((_, column) => {
      const place = { x: left + column * CELL, y, width: CELL - 1, height: CELL - 1 };
      const cell = draw("rect", { ...place, class: "cell", "data-row": row, "data-column": column });
      cell.style.setProperty("--weight", sentence.attention[row][column].toFixed(3));
      cell.append(draw("title", {}, say(sentence, row, column)));
      svg.append(cell);
    });
  });
  return svg;
}

"use strict";
// The report works without this script but for the texts behind a cell and the sorting.
// Texts of the run only ever become text nodes.

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function isolated(text) {
  return element("bdi", "", text);
}

// The texts behind a cell of the confusion matrix

const island = document.getElementById("rows");

function showCell(behind, row, column) {
  const chosen = behind.rows.filter((of) => of[2] === row && of[3] === column);
  const count = behind.counts[row][column];
  const rows = count === 1 ? "row" : "rows";
  const shown = chosen.length < count ? `the costliest ${chosen.length} of ${count}` : `${count}`;
  const status = document.getElementById("texts-status");
  const what = row === column ? ", rightly predicted: " : ", predicted as ";
  status.replaceChildren("Label ", element("b", "", isolated(behind.labels[row])), what);
  if (row !== column) status.append(element("b", "", isolated(behind.labels[column])), ": ");
  status.append(`${shown} ${rows}.`);
  const list = document.getElementById("texts");
  list.replaceChildren(...chosen.map((of) => card(behind, of)));
  list.scrollTop = 0;
  for (const button of document.querySelectorAll("#confusion button[data-row]")) {
    const same = Number(button.dataset.row) === row && Number(button.dataset.column) === column;
    button.setAttribute("aria-pressed", String(same));
  }
}

function card(behind, [place, texts, , prediction, probability, ofLabel, loss, baseline]) {
  const facts = element("p", "facts", element("span", "", `${behind.split} row ${place}`));
  const add = (...children) => facts.append(" ", element("span", "", ...children));
  if (probability !== null) add(`probability ${percent(probability)}`);
  if (ofLabel !== null && ofLabel !== probability) add(`of the label ${percent(ofLabel)}`);
  if (loss !== null) add(`loss ${loss.toFixed(2)}`);
  if (baseline !== null) {
    const same = baseline === prediction ? "too" : "";
    add("linear model: ", isolated(behind.labels[baseline]), same && ` ${same}`);
  }
  const item = element("li", "card", facts);
  texts.forEach((text, index) => {
    if (texts.length > 1 && behind.columns[index]) {
      item.append(element("p", "column", isolated(behind.columns[index])));
    }
    const paragraph = element("p", "text", text);
    paragraph.dir = "auto";
    item.append(paragraph);
  });
  return item;
}

function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1%";
  return `${(100 * share).toFixed(1)}%`;
}

function choose(behind, button) {
  showCell(behind, Number(button.dataset.row), Number(button.dataset.column));
  const status = document.getElementById("texts-status");
  const { top, bottom } = status.getBoundingClientRect();
  if (top < 0 || bottom > window.innerHeight) {
    document.getElementById("texts-title").scrollIntoView({ block: "start" });
  }
}

// In the matrix one cell can be reached by Tab; arrow keys go to the next cell that has rows.
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function makeGrid(table) {
  const buttons = [...table.querySelectorAll("button")];
  const lines = [...table.tBodies[0].rows].map((line) => [...line.cells]);
  const reachable = (chosen) => {
    for (const button of buttons) button.tabIndex = button === chosen ? 0 : -1;
  };
  if (!buttons.length) return;
  reachable(buttons[0]);
  for (const button of buttons) button.setAttribute("aria-describedby", "cell-help");
  table.addEventListener("focusin", (event) => {
    if (buttons.includes(event.target)) reachable(event.target);
  });
  table.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || !buttons.includes(event.target)) return;
    event.preventDefault();
    let row = lines.findIndex((cells) => cells.includes(event.target.parentElement));
    let column = lines[row].indexOf(event.target.parentElement);
    do {
      row += step[0];
      column += step[1];
      const next = lines[row]?.[column]?.querySelector("button");
      if (next) return next.focus();
    } while (lines[row]?.[column]);
  });
}

if (island) {
  const behind = JSON.parse(island.textContent);
  makeGrid(document.getElementById("matrix"));
  document.getElementById("confusion").addEventListener("click", (event) => {
    const button = event.target.closest("button[data-row]");
    if (button) choose(behind, button);
  });
  const { row, column } = island.dataset;
  if (row) showCell(behind, Number(row), Number(column));
}

// Tables that are sorted by a click on a heading: first rising, then falling; what is absent last

function sortBy(table, heading) {
  const falling = heading.getAttribute("aria-sort") === "ascending";
  const column = heading.cellIndex;
  const key = (line) => {
    const cell = line.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  const lines = [...table.tBodies[0].rows];
  const numeric = lines.every((line) => key(line) === "" || Number.isFinite(Number(key(line))));
  const order = (left, right) => {
    const [a, b] = [key(left), key(right)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const difference = numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    return falling ? -difference : difference;
  };
  table.tBodies[0].append(...lines.sort(order));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const title = heading.textContent.trim();
  const way = falling ? "falling" : "rising";
  document.getElementById("announcer").textContent = `Sorted by ${title}, ${way}.`;
}

for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button.sorter");
    if (button) sortBy(table, button.closest("th"));
  });
}

// What scrolls can be scrolled by the keyboard

function markScrolling() {
  for (const box of document.querySelectorAll(".scroll, #texts, .paper, pre")) {
    const scrolls = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    if (scrolls) {
      box.tabIndex = 0;
      if (box.matches(".scroll")) {
        box.setAttribute("role", "region");
        box.setAttribute("aria-label", box.querySelector("caption").textContent);
      }
    } else {
      box.removeAttribute("tabindex");
    }
  }
}

new ResizeObserver(markScrolling).observe(document.getElementById("main"));
document.addEventListener("toggle", markScrolling, true);
markScrolling();

// The contents: folded on a narrow screen, and the section that is read is marked

const contents = document.getElementById("contents");
const narrow = window.matchMedia("(max-width: 64rem)");
const fold = () => { contents.open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();
contents.addEventListener("click", (event) => {
  if (narrow.matches && event.target.closest("a")) contents.open = false;
});

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of contents.querySelectorAll("a")) {
      const here = link.hash === `#${entry.target.id}`;
      here ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
    }
  }
}, { rootMargin: "-10% 0px -80% 0px" });
for (const part of document.querySelectorAll("main > section, main > header")) seen.observe(part);

// On paper everything is open

const opened = new Set();

function openAll() {
  for (const folded of document.querySelectorAll("main details:not([open])")) {
    folded.open = true;
    opened.add(folded);
  }
}

function closeAgain() {
  for (const unfolded of opened) unfolded.open = false;
  opened.clear();
}

window.addEventListener("beforeprint", openAll);
window.addEventListener("afterprint", closeAgain);
const onPaper = window.matchMedia("print");
onPaper.addEventListener("change", () => (onPaper.matches ? openAll() : closeAgain()));

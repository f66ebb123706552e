"use strict";
// Shows one tree at a time and the details of one of its nodes. The address says which: #t3n17.
const articles = [...document.querySelectorAll("article")];
const chooser = document.getElementById("choose");
const SMALLEST = 0.78; // of a tree's size at which its text can be read
let article = null;

const nodeOf = (id) => article.querySelector(`.node[data-node="${id}"]`);
const parentOf = (id) => (id < 0 ? null : +nodeOf(id).dataset.parent);
const childrenOf = (id) => [...article.querySelectorAll(`.node[data-parent="${id}"]`)]
  .map((node) => +node.dataset.node);

function pathTo(id) {
  const path = [];
  for (let at = id; at !== null; at = parentOf(at)) path.unshift(at);
  return path;
}

function chooseTree(number) {
  article = articles[number];
  articles.forEach((each) => { each.hidden = each !== article; });
  chooser.value = String(number);
}

// Opens a node: its details, with those of the turns before it where that is asked for.
function open(id) {
  const path = pathTo(id);
  const withPath = article.querySelector(".with-path").checked;
  for (const detail of article.querySelectorAll(".detail")) {
    const node = +detail.dataset.node;
    detail.hidden = !(node === id || (withPath && node >= 0 && path.includes(node)));
    detail.classList.toggle("open", node === id);
  }
  for (const node of article.querySelectorAll(".node[data-node]")) {
    const chosen = +node.dataset.node === id;
    node.classList.toggle("open", chosen);
    node.setAttribute("aria-pressed", String(chosen));
    node.setAttribute("tabindex", chosen ? "0" : "-1");
  }
  for (const edge of article.querySelectorAll(".edge")) {
    edge.classList.toggle("on", path.includes(+edge.dataset.to));
  }
  article.dataset.chosen = String(id);
  history.replaceState(null, "", `#${article.dataset.name}n${id}`);
  reveal(article.querySelector(".panel"), article.querySelector(".detail.open"));
}

// Scrolls inside a box only: the page stays where it is.
function reveal(box, part) {
  if (box.scrollHeight > box.clientHeight) {
    box.scrollTop += part.getBoundingClientRect().top - box.getBoundingClientRect().top - 8;
  }
}

// Makes the tree as wide as its box if it needn't get smaller than SMALLEST for that.
function fit() {
  const canvas = article.querySelector(".canvas");
  const width = +canvas.querySelector("svg").getAttribute("width");
  const fits = width > canvas.clientWidth && canvas.clientWidth >= SMALLEST * width;
  canvas.classList.toggle("fitted", fits);
}

// Scrolls the canvas to a node: with the prompt in view, if there is room for both.
function center(id) {
  const canvas = article.querySelector(".canvas");
  const frame = canvas.getBoundingClientRect();
  const node = nodeOf(id).getBoundingClientRect(), prompt = nodeOf(-1).getBoundingClientRect();
  const middle = (from, to, size) => {
    const low = Math.min(node[from], prompt[from]), high = Math.max(node[to], prompt[to]);
    return (high - low <= size - 16 ? low + high : node[from] + node[to]) / 2;
  };
  canvas.scrollLeft += middle("left", "right", frame.width) - frame.left - frame.width / 2;
  canvas.scrollTop += middle("top", "bottom", frame.height) - frame.top - frame.height / 2;
}

// The node that an arrow key leads to: along the tree, or up and down in the same column.
function neighbour(id, key) {
  if (key === "ArrowLeft") return parentOf(id);
  if (key === "ArrowRight") return childrenOf(id)[0] ?? null;
  const column = pathTo(id).length;
  const nodes = [...article.querySelectorAll(".node[data-node]")]
    .map((node) => +node.dataset.node)
    .filter((node) => pathTo(node).length === column)
    .sort((a, b) => nodeOf(a).getBBox().y - nodeOf(b).getBBox().y);
  return nodes[nodes.indexOf(id) + (key === "ArrowUp" ? -1 : 1)] ?? null;
}

function onKey(event) {
  const node = event.target.closest(".node[data-node]");
  if (!node) return;
  const id = +node.dataset.node;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    open(id);
  } else if (event.key.startsWith("Arrow")) {
    event.preventDefault();
    const next = neighbour(id, event.key);
    if (next === null) return;
    nodeOf(next).focus({ preventScroll: true });
    center(next);
  }
}

function follow() {
  const match = location.hash.match(/^#t(\d+)(?:n(-?\d+))?$/);
  const number = match && articles[+match[1]] ? +match[1] : 0;
  chooseTree(number);
  const asked = match && match[2] !== undefined ? +match[2] : +article.dataset.chosen;
  const id = nodeOf(asked) ? asked : -1;
  fit();
  open(id);
  center(id);
}

function step(by) {
  location.hash = `t${(articles.indexOf(article) + by + articles.length) % articles.length}`;
}

if (articles.length) {
  document.addEventListener("click", (event) => {
    const node = event.target.closest(".node[data-node]");
    if (node) open(+node.dataset.node);
  });
  document.addEventListener("keydown", onKey);
  document.addEventListener("change", (event) => {
    if (event.target === chooser) location.hash = `t${chooser.value}`;
    if (event.target.classList.contains("with-path")) open(+article.dataset.chosen);
    if (event.target.classList.contains("fit")) {
      article.querySelector(".canvas").classList.toggle("whole", event.target.checked);
    }
  });
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  window.addEventListener("hashchange", follow);
  window.addEventListener("resize", fit);
  follow();
}

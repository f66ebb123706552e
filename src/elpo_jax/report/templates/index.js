"use strict";
// Filters and orders the table of tasks; both live in the address, so a view can be linked to.
const form = document.querySelector(".filters");
// A row's dataset is slow to read, so it is copied once.
const rows = [...document.querySelectorAll("#tasks tbody tr")]
  .map((element) => ({ element, data: { ...element.dataset } }));

const SUCCESS = {
  failed: (row) => +row.successes < +row.rollouts,
  none: (row) => +row.successes === 0,
  some: (row) => +row.successes > 0 && +row.successes < +row.rollouts,
  every: (row) => +row.successes === +row.rollouts,
};
const SEARCHED = {
  yes: (row) => +row.searches > 0,
  resolved: (row) => +row.resolved > 0,
  no: (row) => +row.searches === 0,
};
const share = (row) => (+row.rollouts ? row.successes / row.rollouts : 0);
const ORDER = {
  worst: (a, b) => share(a) - share(b),
  best: (a, b) => share(b) - share(a),
  searches: (a, b) => b.searches - a.searches,
};

let order = "";
function arrange(wanted) {
  if (wanted === order) return;
  order = wanted;
  const sorted = wanted ? [...rows].sort((a, b) => ORDER[wanted](a.data, b.data)) : rows;
  document.querySelector("#tasks tbody").append(...sorted.map(({ element }) => element));
}

function fits(row, filter) {
  const words = filter.text.toLowerCase().split(/\s+/).filter(Boolean);
  return words.every((word) => row.text.includes(word))
    && (!filter.kind || row.kind === filter.kind)
    && (!filter.source || row.source === filter.source
      || (filter.source === "training" && row.source.startsWith("Training")))
    && (!filter.way || row.ways.split("|").includes(filter.way))
    && (!filter.success || SUCCESS[filter.success](row))
    && (!filter.searched || SEARCHED[filter.searched](row));
}

function show() {
  const filter = Object.fromEntries(new FormData(form));
  arrange(filter.order);
  let shown = 0;
  for (const { element, data } of rows) {
    const fit = fits(data, filter);
    if (element.hidden === fit) element.hidden = !fit;
    shown += fit;
  }
  document.getElementById("count").textContent = `${shown} of ${rows.length} tasks`;
  document.getElementById("nothing").hidden = shown > 0;
  const used = Object.entries(filter).filter(([, value]) => value);
  const hash = new URLSearchParams(used).toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

function readAddress() {
  form.reset();
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const field = form.elements.namedItem(name);
    if (field) field.value = value;
  }
  for (const select of form.querySelectorAll("select")) {
    if (select.selectedIndex < 0) select.selectedIndex = 0;
  }
  show();
}

form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
document.getElementById("reset").addEventListener("click", () => { form.reset(); show(); });
window.addEventListener("hashchange", readAddress);
readAddress();

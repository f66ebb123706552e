"use strict";
// Reads values off the charts, under the pointer or by the arrow keys.

function text(value, unit) {
  if (unit === "percent") return `${(100 * value).toPrecision(3)}%`;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

function setUp(figure) {
  const { unit, x, frame: [left, right, width], lines } = JSON.parse(figure.dataset.chart);
  const cursor = figure.querySelector(".cursor");
  const readout = figure.querySelector(".readout");
  const picture = figure.querySelector("svg");
  const outputs = [...figure.querySelectorAll(".legend output")];  // one a line
  const values = lines.map((points) => new Map(points));
  const steps = [...new Set(lines.flatMap((points) => points.map(([step]) => step)))]
    .sort((a, b) => a - b);
  let at = -1;

  function show(index) {
    at = Math.max(0, Math.min(steps.length - 1, index));
    const step = steps[at];
    const place = left + (right - left) * (step - x[0]) / (x[1] - x[0]);
    cursor.setAttribute("transform", `translate(${place} 0)`);
    cursor.style.visibility = "visible";
    readout.textContent = `step ${step}`;
    outputs.forEach((output, i) => {
      output.textContent = values[i].has(step) ? text(values[i].get(step), unit) : "";
    });
  }

  function hide() {
    at = -1;
    cursor.style.visibility = "hidden";
    readout.textContent = "";
    outputs.forEach((output) => { output.textContent = ""; });
  }

  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * width;
    const step = x[0] + (place - left) / (right - left) * (x[1] - x[0]);
    const distances = steps.map((each) => Math.abs(each - step));
    show(distances.indexOf(Math.min(...distances)));
  });
  picture.addEventListener("pointerleave", hide);
  figure.addEventListener("blur", hide);
  figure.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    const by = event.key === "ArrowRight" ? 1 : -1;
    show(at < 0 ? (by > 0 ? 0 : steps.length - 1) : at + by);
  });
}

document.querySelectorAll(".chart").forEach(setUp);

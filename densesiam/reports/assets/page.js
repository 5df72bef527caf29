"use strict";
// A click on a heading sorts its table, a second one the other way round; what has no value stays last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const body = heading.closest("table").tBodies[0];
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[heading.cellIndex];
      return cell.dataset.key ?? cell.textContent.trim();
    };
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "–" || y === "–") return (x === "–") - (y === "–");
      const order = x.localeCompare(y, "en", { numeric: true });
      const numbers = Number(x) - Number(y);
      return (down ? -1 : 1) * (Number.isNaN(numbers) ? order : numbers);
    };
    body.append(...[...body.rows].sort(compare));
  });
}
// A slider cuts the colours off its photograph; where the pointer rests, their category is named.
const names = JSON.parse(document.getElementById("colours")?.textContent ?? "{}");
for (const figure of document.querySelectorAll(".compare")) {
  const [stage, slider] = [figure.querySelector(".stage"), figure.querySelector("input")];
  const [, painted] = stage.querySelectorAll("img");
  const said = stage.querySelector("output");
  slider.addEventListener("input", () => figure.style.setProperty("--cut", `${slider.value}%`));
  let pixels = null;
  stage.addEventListener("pointermove", (event) => {
    if (pixels === null) {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [painted.naturalWidth, painted.naturalHeight];
      pixels = canvas.getContext("2d", { willReadFrequently: true });
      pixels.drawImage(painted, 0, 0);
    }
    const box = painted.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * painted.naturalWidth);
    const y = Math.floor(((event.clientY - box.top) / box.height) * painted.naturalHeight);
    said.textContent = names[[...pixels.getImageData(x, y, 1, 1).data.slice(0, 3)].join(",")] ?? "";
  });
  stage.addEventListener("pointerleave", () => (said.textContent = ""));
}
for (const label of document.querySelectorAll(".strength input")) {
  label.addEventListener("input", () => {
    document.body.style.setProperty("--strength", label.value / 100);
  });
}

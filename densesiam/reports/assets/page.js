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

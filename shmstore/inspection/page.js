"use strict";
// Sorts a table by the column whose head is clicked, or chosen by the Enter key.
for (const head of document.querySelectorAll(".sortable th")) {
  const sort = () => {
    const falling = head.getAttribute("aria-sort") === "ascending" ||
      (head.className === "number" && !head.hasAttribute("aria-sort"));
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const key = (row) => {
      const cell = row.cells[head.cellIndex];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
    };
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (falling ? -1 : 1));
    body.append(...rows.map(([, row]) => row));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
}
// Opens the DAG that a link leads to.
const open = () => {
  const found = location.hash && document.querySelector(location.hash);
  if (found && found.tagName === "DETAILS") found.open = true;
};
window.addEventListener("hashchange", open);
open();

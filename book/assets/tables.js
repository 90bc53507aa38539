/* A narrow page puts the cells of a row below one another (style.css), each with the name of its column */
document.addEventListener("DOMContentLoaded", () => {
    for (const table of document.querySelectorAll(".bd-article table")) {
        const rows = [...table.querySelectorAll("thead tr")], own = rows.filter(r => r.querySelector(".col_heading"));
        const heads = own.length ? own : rows;
        if (heads.length !== 1 || table.closest(".claims")) continue;
        const names = [...heads[0].children].map(c => c.textContent.trim());
        table.classList.add("named");
        for (const row of table.querySelectorAll("tbody tr"))
            [...row.children].forEach((cell, i) => { cell.dataset.of = names[i] || ""; });
    }
});

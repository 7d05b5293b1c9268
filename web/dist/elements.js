// Elements are made here and nowhere else, and text is only ever put into them as text: whatever a server or an
// address says, it is never read as HTML.
function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
        if (value === null || value === false)
            continue;
        element.setAttribute(name, value === true ? "" : String(value));
    }
    for (const child of children) {
        if (child !== null)
            element.append(child);
    }
}
/** An element. */
export function el(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    fill(element, attributes, children);
    return element;
}
/** An element of a drawing. */
export function svg(tag, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    fill(element, attributes, children);
    return element;
}
/** An element of the page, which is there. */
export function known(id) {
    const element = document.getElementById(id);
    if (element === null)
        throw new Error(`the page has no #${id}`);
    return element;
}
/** Says something, if it is not what is said already. */
export function say(element, text) {
    if (element.textContent !== text)
        element.textContent = text;
}
/** A table's rows, of texts; columns after the first are figures unless named otherwise. */
export function rows(body, all, none) {
    if (all.length === 0) {
        body.replaceChildren(el("tr", {}, el("td", { class: "none", colspan: 12 }, none)));
        return;
    }
    body.replaceChildren(...all.map((cells) => el("tr", {}, ...cells.map((c, i) => (i === 0 ? el("th", { scope: "row" }, c) : el("td", {}, c))))));
}
/** A table with a caption for whoever does not see its heading. */
export function table(caption, columns, kind) {
    const body = el("tbody");
    const head = el("tr", {}, ...columns.map((c) => el("th", { scope: "col" }, c)));
    const all = el("table", { class: kind }, el("caption", { class: "unseen" }, caption), el("thead", {}, head), body);
    return { box: el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, all), body };
}

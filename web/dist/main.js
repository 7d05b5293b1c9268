// Which view is shown, and in which colours.
import { known, say } from "./elements.js";
import { read } from "./hash.js";
import { Live } from "./live.js";
import { Planner } from "./planner.js";
const THEME = "plimsoll.theme";
const THEMES = ["system", "light", "dark"];
const live = new Live();
const planner = new Planner();
function theme() {
    const chosen = localStorage.getItem(THEME) ?? "";
    return THEMES.includes(chosen) ? chosen : "system";
}
function paint() {
    const name = theme();
    const root = document.documentElement;
    if (name === "system")
        delete root.dataset["theme"];
    else
        root.dataset["theme"] = name;
    const button = known("theme");
    say(button, `Colours: ${name}`);
    button.setAttribute("aria-label", `Colours: ${name}. Press to change.`);
    live.recolour();
}
known("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length] ?? "system";
    localStorage.setItem(THEME, next);
    paint();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => live.recolour());
async function go() {
    // What skips to the content is no view.
    if (location.hash === "#main")
        return;
    const place = await read(location.hash);
    for (const view of ["live", "plan"]) {
        const shown = view === place.view;
        known(`view-${view}`).hidden = !shown;
        const link = known(`to-${view}`);
        if (shown)
            link.setAttribute("aria-current", "page");
        else
            link.removeAttribute("aria-current");
    }
    document.title = place.view === "live" ? "Live memory – Plimsoll" : "Planner – Plimsoll";
    if (place.view === "live") {
        live.show();
    }
    else {
        live.hide();
        await planner.show(place);
    }
}
window.addEventListener("hashchange", () => void go());
paint();
void go();

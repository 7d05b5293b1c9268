// In which colours a page is shown: the system's, or those that its switch says.
import { known, say } from "./elements.js";
const THEME = "plimsoll.theme";
const THEMES = ["system", "light", "dark"];
let after = () => { };
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
    after();
}
/** What is to be done, now and whenever the colours are others. */
export function painted(then) {
    after = then;
    after();
}
known("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length] ?? "system";
    localStorage.setItem(THEME, next);
    paint();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => after());
paint();

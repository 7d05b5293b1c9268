// Which view is shown.
import { known } from "./elements.js";
import { read } from "./hash.js";
import { Live } from "./live.js";
import { Planner } from "./planner.js";
import { painted } from "./theme.js";
const live = new Live();
const planner = new Planner();
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
painted(() => live.recolour());
void go();

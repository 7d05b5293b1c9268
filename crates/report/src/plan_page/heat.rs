//! How full the deployment is, by users and context.

use std::fmt::Write as _;

use plimsoll_plan::{Cell, Grid};

use super::stack::share;
use crate::numbers::{short_bytes, thousands};
use crate::wire::PlanReport;

/// Shades of what fits.
const SHADES: u128 = 5;

pub(super) fn grid(g: &Grid, r: &PlanReport, out: &mut String) {
    let _ = writeln!(
        out,
        "<h2>Users and context</h2>\n<p class=\"quiet-text\">How much of the room for the KV cache a load takes, in \
         percent, on the device where it takes most. What does not fit is struck through; the load that was asked for has a frame.{}</p>\n<div \
         class=\"scroll\"><table class=\"heat\">\n<thead><tr><th scope=\"col\">tokens \\ users</th>",
        if r.load.lengths.is_empty() {
            ""
        } else {
            " Contexts are the longest of the mix, which keeps its shares."
        }
    );
    for n in &g.users {
        let _ = write!(out, "<th scope=\"col\">{}</th>", thousands(*n));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (context, row) in g.contexts.iter().zip(&g.cells) {
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", thousands(*context));
        for (users, cell) in g.users.iter().zip(row) {
            let asked = r.load.users == Some(*users) && r.load.context == *context;
            one(*cell, asked, out);
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n");
}

fn one(c: Cell, asked: bool, out: &mut String) {
    let (need, room) = (c.need.get(), c.room.get());
    let asked = if asked { " asked" } else { "" };
    let told = format!("{} of {}", short_bytes(need), short_bytes(room));
    if !c.fits() {
        let _ = write!(
            out,
            "<td class=\"over{asked}\" title=\"needs {told}\"><s>{}</s></td>",
            over(need, room)
        );
        return;
    }
    let shade = (u128::from(need) * SHADES / u128::from(room.max(1))).min(SHADES - 1);
    let _ = write!(
        out,
        "<td class=\"h{shade}{asked}\" title=\"{told}\">{}</td>",
        share(need, room)
    );
}

/// How many times too much it is.
fn over(need: u64, room: u64) -> String {
    match need.checked_div(room) {
        Some(times @ 0..=99) => {
            let tenths = u128::from(need) * 10 / u128::from(room) % 10;
            format!("{times}.{tenths}x")
        }
        _ => "&gt;99x".to_owned(),
    }
}

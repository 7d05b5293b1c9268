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

/// How many times what there is it takes, to a tenth above.
fn over(need: u64, room: u64) -> String {
    let tenths = match room {
        0 => u128::MAX,
        _ => (u128::from(need) * 10).div_ceil(room.into()),
    };
    if tenths < 1000 {
        format!("{}.{}x", tenths / 10, tenths % 10)
    } else {
        "&gt;99x".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::over;

    #[test]
    fn what_does_not_fit_is_never_told_as_what_would() {
        assert_eq!(over(101, 100), "1.1x");
        assert_eq!(over(200, 100), "2.0x");
        assert_eq!(over(10_000, 100), "&gt;99x");
        assert_eq!(over(1, 0), "&gt;99x");
        assert_eq!(over(u64::MAX, u64::MAX - 1), "1.1x");
    }
}

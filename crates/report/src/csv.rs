//! A plan as CSV: one line per term of every rank, for spreadsheets and scripts.

use std::fmt::Write as _;

use crate::numbers::plain;
use crate::wire::PlanReport;

/// The terms of `report`, those on the host too. Sizes are bytes of one rank; `copies` ranks are alike.
#[must_use]
pub fn plan_csv(report: &PlanReport) -> String {
    let mut out = String::from(
        "stage,first_layer,end_layer,copies,place,region,name,bytes,low_bytes,high_bytes,kind,inside_budget,formula,\
         source\n",
    );
    for rank in &report.ranks {
        let device = rank.terms.iter().map(|t| ("device", t));
        let host = rank.host_terms.iter().map(|t| ("host", t));
        for (place, t) in device.chain(host) {
            let (low, high) = t.interval.map_or((t.bytes, t.bytes), |i| (i.low, i.high));
            let _ = writeln!(
                out,
                "{},{},{},{},{place},{},{},{},{low},{high},{},{},{},{}",
                rank.stage,
                rank.layers[0],
                rank.layers[1],
                rank.copies,
                field(&t.region),
                field(&t.name),
                t.bytes,
                field(&t.kind),
                t.inside,
                field(&t.formula),
                field(&t.source)
            );
        }
    }
    out
}

/// A quoted field (RFC 4180) that no spreadsheet takes for a formula.
pub(crate) fn field(text: &str) -> String {
    let text = plain(text);
    let guard = if text.starts_with(['=', '+', '-', '@']) {
        "'"
    } else {
        ""
    };
    if guard.is_empty() && !text.contains([',', '"']) {
        return text;
    }
    format!("\"{guard}{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn labels_are_quoted_and_never_formulas() {
        assert_eq!(field("orca-max"), "orca-max");
        assert_eq!(field("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(field("=1+1"), "\"'=1+1\"");
    }
}

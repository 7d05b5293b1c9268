//! What all pages have in common: no network, no script, light and dark.

use crate::svg::escape;

/// The colours and type of every chart.
pub const CHART_CSS: &str = include_str!("page/chart.css");

/// The layout of a page; colours are those of the charts.
const PAGE_CSS: &str = include_str!("page/page.css");

/// A page of this body and footer, which are elements already.
pub(crate) fn document(title: &str, body: &str, footer: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"/>\n<meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <title>{}</title>\n<style>\n{CHART_CSS}{PAGE_CSS}</style>\n</head>\n<body>\n<main>\n{body}\
         <footer>{footer}</footer>\n</main>\n</body>\n</html>\n",
        escape(title)
    )
}

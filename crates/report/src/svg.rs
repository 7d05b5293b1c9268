//! A small SVG writer: a dozen shapes, colours by class (so that one picture serves light and dark),
//! every text escaped, no number that is not finite.

use std::fmt::Write as _;

use crate::numbers::plain;

/// `text` as the content of an element or a quoted attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in plain(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A coordinate to a tenth of a pixel; 0 for what is not a number.
pub(crate) fn px(x: f64) -> String {
    let x = if x.is_finite() { x } else { 0.0 };
    let text = format!("{x:.1}");
    match text.strip_suffix(".0") {
        Some("-0") => "0".to_owned(),
        Some(whole) => whole.to_owned(),
        None => text,
    }
}

/// Pixels around a drawing that stands alone.
const MARGIN: f64 = 14.0;

/// Where a text hangs on its point.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// A drawing under way.
pub(crate) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    pub(crate) fn new(width: f64, height: f64) -> Self {
        Self {
            width,
            height,
            body: String::new(),
        }
    }

    /// A rectangle, with what a pointer over it reads.
    pub(crate) fn rect(&mut self, class: &str, [x, y, w, h]: [f64; 4], title: &str) {
        let _ = write!(
            self.body,
            "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"",
            px(x),
            px(y),
            px(w.max(0.0)),
            px(h.max(0.0))
        );
        self.close("rect", title);
    }

    pub(crate) fn circle(&mut self, class: &str, x: f64, y: f64, r: f64, title: &str) {
        let _ = write!(
            self.body,
            "<circle class=\"{class}\" cx=\"{}\" cy=\"{}\" r=\"{}\"",
            px(x),
            px(y),
            px(r)
        );
        self.close("circle", title);
    }

    pub(crate) fn line(&mut self, class: &str, [x1, y1, x2, y2]: [f64; 4]) {
        let _ = write!(
            self.body,
            "<line class=\"{class}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>",
            px(x1),
            px(y1),
            px(x2),
            px(y2)
        );
    }

    /// A path; `d` comes from [`px`].
    pub(crate) fn path(&mut self, class: &str, d: &str, title: &str) {
        let _ = write!(self.body, "<path class=\"{class}\" d=\"{d}\"");
        self.close("path", title);
    }

    pub(crate) fn text(&mut self, class: &str, anchor: Anchor, x: f64, y: f64, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = write!(
            self.body,
            "<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{}\" y=\"{}\">{}</text>",
            px(x),
            px(y),
            escape(text)
        );
    }

    /// A title and a remark behind it in quieter type.
    pub(crate) fn heading(&mut self, x: f64, y: f64, title: &str, remark: &str) {
        let _ = write!(
            self.body,
            "<text x=\"{}\" y=\"{}\"><tspan class=\"title\">{}</tspan><tspan class=\"unit\" \
             dx=\"8\">{}</tspan></text>",
            px(x),
            px(y),
            escape(title),
            escape(remark)
        );
    }

    fn close(&mut self, element: &str, title: &str) {
        if title.is_empty() {
            self.body.push_str("/>");
        } else {
            let _ = write!(self.body, "><title>{}</title></{element}>", escape(title));
        }
    }

    /// The document, which names itself `label` to a screen reader; `style` goes inside where it
    /// stands alone.
    pub(crate) fn finish(&self, label: &str, style: &str) -> String {
        let attributes = format!(
            "xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" role=\"img\" aria-label=\"{}\"",
            escape(label)
        );
        if style.is_empty() {
            let (w, h) = (px(self.width), px(self.height));
            return format!(
                "<svg {attributes} viewBox=\"0 0 {w} {h}\">{}</svg>",
                self.body
            );
        }
        // On its own it needs a ground and a margin, which on a page are the page's.
        let (w, h) = (
            px(self.width + 2.0 * MARGIN),
            px(self.height + 2.0 * MARGIN),
        );
        let place = format!("x=\"-{MARGIN}\" y=\"-{MARGIN}\" width=\"{w}\" height=\"{h}\"");
        format!(
            "<svg {attributes} viewBox=\"-{MARGIN} -{MARGIN} {w} {h}\" width=\"{w}\" height=\"{h}\">\
             <style>{style}</style><rect class=\"paper\" {place}/>{}</svg>",
            self.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_a_text() {
        assert_eq!(
            escape("<a href='x'>\"&\u{0}"),
            "&lt;a href=&#39;x&#39;&gt;&quot;&amp;\u{fffd}"
        );
    }

    #[test]
    fn coordinates_are_short_and_finite() {
        assert_eq!(px(1.0), "1");
        assert_eq!(px(-0.01), "0");
        assert_eq!(px(2.25), "2.2");
        assert_eq!(px(f64::NAN), "0");
        assert_eq!(px(f64::INFINITY), "0");
    }
}

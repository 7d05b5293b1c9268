//! [`View`]: every page by what it is and whose, for whoever looks at a pool.

use crate::cache::KvCache;
use crate::table::{Entry, Table};

/// What a page is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageState {
    /// Nobody holds it and nothing is in it.
    #[default]
    Free,
    /// Nobody holds it; the prefix index finds it.
    Cached,
    /// Held once.
    Held,
    /// Held several times, not by a beam search.
    Shared,
    /// Held by a beam search.
    Beam,
    /// Held by nobody, and read or written by copies under way.
    InTransit,
}

/// A page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageView {
    /// What it is.
    pub state: PageState,
    /// The place of the one request that holds it.
    pub owner: Option<u32>,
}

/// What a request holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Pages, each once.
    pub pages: u32,
    /// Of them, those with several holders.
    pub shared: u32,
    /// Places in swap space, each once.
    pub swapped: u32,
}

/// A pool at one moment, page by page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// All pages but the null page, by their number.
    pub pages: Vec<PageView>,
    /// What each request holds, by its place.
    pub holdings: Vec<Holding>,
    /// Held pages with several holders.
    pub shared: u32,
    /// Pages that beam searches hold.
    pub beam: u32,
    /// Held pages that the prefix index finds.
    pub prefix: u32,
}

impl KvCache {
    /// Walks all pages and tables. The tables of a request lie together, each with the request's place and whether it
    /// is a beam search; places count from 0.
    #[must_use]
    pub fn view<'a>(&self, tables: impl Iterator<Item = (u32, bool, &'a Table)>) -> View {
        let pages = self.pool.total() as usize + 1;
        let mut view = View {
            pages: vec![PageView::default(); pages],
            ..View::default()
        };
        // Who was seen last at a page and at a place of swap space, plus one.
        let mut seen = vec![0_u32; pages];
        let mut seen_swapped = vec![0_u32; self.swap.places().len()];
        for (place, beam, table) in tables {
            let at = place as usize;
            if view.holdings.len() <= at {
                view.holdings.resize(at + 1, Holding::default());
            }
            let holding = &mut view.holdings[at];
            for (_, entry) in table.entries() {
                match entry {
                    Entry::Device { page, .. } => {
                        let i = page as usize;
                        if std::mem::replace(&mut seen[i], place + 1) == place + 1 {
                            continue;
                        }
                        holding.pages += 1;
                        let p = &mut view.pages[i];
                        if self.pool.page(page).refs > 1 {
                            holding.shared += 1;
                            // Its own sequences may be all of them.
                            p.owner = None;
                        } else {
                            p.owner = Some(place);
                        }
                        if beam {
                            p.state = PageState::Beam;
                        }
                    }
                    Entry::Host { slot, .. } => {
                        let last = &mut seen_swapped[slot as usize];
                        if std::mem::replace(last, place + 1) != place + 1 {
                            holding.swapped += 1;
                        }
                    }
                }
            }
        }
        for (id, view_of) in (0_u32..).zip(&mut view.pages).skip(1) {
            let page = self.pool.page(id);
            let is_beam = view_of.state == PageState::Beam;
            view_of.state = match page.refs {
                0 if page.moves > 0 => PageState::InTransit,
                0 if page.published => PageState::Cached,
                0 => PageState::Free,
                _ if is_beam => PageState::Beam,
                1 => PageState::Held,
                _ => PageState::Shared,
            };
            if page.refs > 0 {
                view.shared += u32::from(page.refs > 1);
                view.beam += u32::from(is_beam);
                view.prefix += u32::from(page.published);
            }
        }
        view.pages.remove(0);
        view
    }
}

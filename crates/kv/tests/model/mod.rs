//! The allocator as plainly as it can be said, for one full-attention group: blocks by value, references
//! counted anew each time, moves done at once. The line count matters: below 100 lines of code, or it is no
//! longer the simpler of the two (so it is laid out by hand).

/// A sequence: its blocks (numbers that are never used again), tokens, blocks that were offered to the
/// cache, and whether no more will be.
#[derive(Clone, Default)]
pub(crate) struct Seq { pub(crate) blocks: Vec<usize>, pub(crate) len: usize, offered: usize, lost: bool }

#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) slots: usize, pub(crate) pages: usize, pub(crate) places: usize, pub(crate) cache: bool,
    pub(crate) seqs: Vec<Seq>,
    /// Cached blocks that nobody holds, the next to be given up first.
    pub(crate) lru: Vec<usize>,
    /// By block: what it is found by, all tokens up to its end; and whether it lies in swap space.
    pub(crate) text: Vec<Option<Vec<u32>>>,
    pub(crate) away: Vec<bool>,
}

impl Model {
    fn count(&self, b: usize) -> usize { self.seqs.iter().flat_map(|s| &s.blocks).filter(|o| **o == b).count() }
    pub(crate) fn held(&self, away: bool) -> usize {
        (0..self.text.len()).filter(|b| self.away[*b] == away && self.count(*b) > 0).count()
    }
    pub(crate) fn available(&self) -> usize { self.pages - self.held(false) }
    fn find(&self, text: &[u32]) -> Option<usize> {
        (0..self.text.len()).find(|b| !self.away[*b] && self.text[*b].as_deref() == Some(text))
    }
    fn add(&mut self, text: Option<Vec<u32>>, away: bool) -> usize { self.text.push(text); self.away.push(away); self.text.len() - 1 }
    /// A block for which a cached one is given up where none is free.
    fn take(&mut self) -> usize {
        if self.available() == self.lru.len() { let old = self.lru.remove(0); self.text[old] = None; }
        self.add(None, false)
    }
    fn let_go(&mut self, b: usize) { if self.count(b) == 0 && self.text[b].is_some() && !self.away[b] { self.lru.push(b); } }
    fn set(&mut self, s: usize, i: usize, b: usize) {
        self.lru.retain(|l| *l != b);
        let blocks = &mut self.seqs[s].blocks;
        blocks.resize(blocks.len().max(i + 1), b);
        let was = std::mem::replace(&mut blocks[i], b);
        self.let_go(was);
    }
    /// The copies that are made, where there is room.
    pub(crate) fn prepare(&mut self, s: usize, n: usize) -> Option<usize> {
        let (old, end) = (self.seqs[s].blocks.len(), (self.seqs[s].len + n).div_ceil(self.slots));
        let part = self.seqs[s].blocks.get(self.seqs[s].len / self.slots).copied();
        let copies = usize::from(part.is_some_and(|b| self.count(b) > 1));
        if end - old + copies > self.available() { return None; }
        if let Some(b) = part.filter(|_| copies == 0) { self.text[b] = None; }
        for i in old - copies..end { let b = self.take(); self.set(s, i, b); }
        Some(copies)
    }
    pub(crate) fn commit(&mut self, s: usize, tokens: &[u32]) {
        self.cut(s, tokens.len());
        self.publish(s, tokens, false);
    }
    /// Offers full blocks to the cache: those that were not offered yet, or all of them again.
    pub(crate) fn publish(&mut self, s: usize, tokens: &[u32], again: bool) {
        if again { (self.seqs[s].offered, self.seqs[s].lost) = (0, false); }
        while self.cache && !self.seqs[s].lost && self.seqs[s].offered < tokens.len() / self.slots {
            let i = self.seqs[s].offered;
            let (b, text) = (self.seqs[s].blocks[i], &tokens[..(i + 1) * self.slots]);
            if let Some(o) = self.find(text) { self.set(s, i, o); } else { self.text[b] = Some(text.to_vec()); }
            self.seqs[s].offered += 1;
        }
    }
    pub(crate) fn cut(&mut self, s: usize, to: usize) {
        let end = to.div_ceil(self.slots).min(self.seqs[s].blocks.len());
        for b in self.seqs[s].blocks.split_off(end).into_iter().rev() { self.let_go(b); }
        self.seqs[s].len = to;
        if self.seqs[s].offered > to / self.slots {
            let last = (to / self.slots).checked_sub(1).map(|i| self.seqs[s].blocks[i]);
            self.seqs[s].lost = last.is_none_or(|b| self.text[b].is_none() || self.away[b]);
            self.seqs[s].offered = to / self.slots;
        }
    }
    /// The blocks of these sequences that lie in swap space, or do not; each once.
    fn blocks(&self, set: &[usize], away: bool) -> Vec<usize> {
        let all = set.iter().flat_map(|s| &self.seqs[*s].blocks).filter(|b| self.away[**b] == away);
        all.fold(Vec::new(), |mut v, b| { if !v.contains(b) { v.push(*b); } v })
    }
    fn replace(&mut self, set: &[usize], old: usize, new: usize) {
        for s in set { for b in self.seqs[*s].blocks.iter_mut().filter(|b| **b == old) { *b = new; } }
    }
    /// How many go, where there is room: those that only these sequences hold.
    pub(crate) fn swap_out(&mut self, set: &[usize]) -> Option<usize> {
        let mut go = self.blocks(set, false);
        go.retain(|b| !(0..self.seqs.len()).any(|s| !set.contains(&s) && self.seqs[s].blocks.contains(b)));
        if go.len() > self.places - self.held(true) { return None; }
        for b in &go { let to = self.add(self.text[*b].clone(), true); self.replace(set, *b, to); }
        for b in &go { self.let_go(*b); }
        Some(go.len())
    }
    /// How many come back, where there is room for all: what is still cached need not.
    pub(crate) fn swap_in(&mut self, set: &[usize]) -> Option<usize> {
        let (back, before) = (self.blocks(set, true), self.text.len());
        if back.len() > self.available() { return None; }
        for b in &back {
            let cached = self.text[*b].as_ref().and_then(|text| self.find(text));
            let to = cached.unwrap_or_else(|| self.take());
            self.lru.retain(|l| *l != to);
            self.replace(set, *b, to);
        }
        Some(self.text.len() - before)
    }
    pub(crate) fn lookup(&self, tokens: &[u32]) -> usize {
        let found = |n: &usize| self.find(&tokens[..n * self.slots]).is_some();
        (1..=tokens.len() / self.slots).take_while(found).count() * self.slots
    }
    pub(crate) fn attach(&mut self, s: usize, tokens: &[u32]) {
        (self.seqs[s].len, self.seqs[s].offered) = (tokens.len(), tokens.len() / self.slots);
        for n in 1..=tokens.len() / self.slots { self.set(s, n - 1, self.find(&tokens[..n * self.slots]).expect("found")); }
    }
}

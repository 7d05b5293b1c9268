//! KV pages and everything held in them.

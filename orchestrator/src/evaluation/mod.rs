//! Many prompts under several settings, measured against the uncut model: what `lacuna eval` keeps and
//! shows.
//!
//! - [`asked`]: what is asked of a run.
//! - [`run`]: a run: every prompt under every [`arm`], [`making`] what is not there; [`experiments`]: the arms of
//!   the paper's tables.
//! - [`prompts`]: prompt files of three kinds.
//! - [`shard`]: which prompts are one machine's.
//! - [`record`]: what a run is, and what it finds; [`store`]: its directory, which can be killed at any moment.
//! - [`features`]: what FID and KID need of each set, in files that merge.
//! - [`results`]: the rows of a run, or of its shards together; [`summary`]: their means; [`table`]: both as
//!   CSV and Markdown.
//! - [`paper`]: the tables that the paper prints.
//! - [`html`]: the report that needs no other file.
//! - `plots`: its plots; `markup`: text and bytes inside it.

pub mod arm;
pub mod asked;
pub mod experiments;
pub mod features;
pub mod html;
pub mod making;
pub(crate) mod markup;
pub mod paper;
mod plots;
pub mod prompts;
pub mod record;
pub mod results;
pub mod run;
pub mod shard;
pub mod store;
pub mod summary;
pub mod table;

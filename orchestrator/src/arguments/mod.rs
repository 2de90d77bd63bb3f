//! What several commands read in the same way, and what they make of it.
//!
//! - [`model`]: which model, and opening it.
//! - [`size`]: of the picture, or of the latents of a model of which there is the config alone.
//! - [`prompt`]: how a prompt is read.
//! - [`init_image`]: which picture others are made from.
//! - [`sampling`]: how pictures are sampled.
//! - [`preview`]: pictures of unfinished pictures.
//! - [`scheme`]: the scheme and its options.
//! - [`fleet`]: the workers.
//! - [`terms`]: what they may see, and how they may be reached.
//! - [`speed`]: how fast everything is.

pub mod fleet;
pub mod init_image;
pub mod model;
pub mod preview;
pub mod prompt;
pub mod sampling;
pub mod scheme;
pub mod size;
pub mod speed;
pub mod terms;

//! The user's side of Lacuna: everything that stays on the machine of the person who asks for a picture.
//!
//! # Layout
//!
//! From a prompt to a picture:
//! - [`model`]: a model on disk, and its parts.
//! - [`family`]: what differs in how models are used.
//! - [`text`]: prompt to tokens to embeddings.
//! - [`noise`]: torch's random numbers.
//! - [`init_image`]: pictures that others are made from.
//! - [`schedulers`]: how noise is taken out of the latents.
//! - [`vae`]: latents to picture and back.
//! - [`picture`]: the decoder's output to a PNG file.
//! - [`preview`]: pictures of unfinished pictures.
//! - [`unet_source`]: the U-Net, and where its weights come from.
//! - [`corrections`]: what the reference changes after it has read the files.
//! - [`pipeline`]: all of these in a row.
//! - [`generator`]: that for one picture after the other, wherever the U-Net is computed.
//! - [`checkpoint`]: what is needed to go on with a run that did not get to its end.
//!
//! The U-Net on others' machines:
//! - [`schemes`]: how one U-Net call is placed.
//! - [`fleet`]: the workers, the dialogue with them, and what each saw.
//! - [`policy`]: what a provider may see and does see, and the fastest plan under that.
//! - [`cost`]: what a scheme sends and computes, without running it.
//!
//! At the edge:
//! - [`arguments`]: what several commands read in the same way.
//! - [`report`]: what a run took and who saw what.
//! - [`interrupt`]: the switch that ends a run before its end.
//! - [`memory`]: whether there is room for what is computed here.
//! - [`output`]: files that are written whole or not at all, and lines for the user.
//! - [`progress`]: how far a long work is.
//! - [`mod@side_by_side`]: several pictures at once.
//! - [`named`]: values by the names that files and flags have for them.
//! - [`limits`]: how large what is asked for may be.
//! - [`error`]: everything that can go wrong.
// They end the program where nobody listens: see output::console.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod arguments;
pub mod checkpoint;
pub mod corrections;
pub mod cost;
pub mod error;
pub mod family;
pub mod fleet;
pub mod generator;
pub mod init_image;
pub mod interrupt;
pub mod limits;
pub mod memory;
pub mod model;
pub mod named;
pub mod noise;
pub mod output;
pub mod picture;
pub mod pipeline;
pub mod policy;
pub mod preview;
pub mod progress;
pub mod report;
pub mod schedulers;
pub mod schemes;
pub mod side_by_side;
pub mod text;
pub mod unet_source;
pub mod vae;

pub use error::{Error, Result};

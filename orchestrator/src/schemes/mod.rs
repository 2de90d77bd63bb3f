//! The schemes: how one U-Net call is placed.
//!
//! A scheme is one part: an implementation of [`Scheme`] and a line of [`registry::SCHEMES`]. What the rest of the
//! program asks of schemes, it asks by that trait; `docs/architecture.md` has the recipe for a new one.
//!
//! # Layout
//!
//! - [`scheme`]: what every scheme answers, and a scheme for latents of one size.
//! - [`registry`]: which schemes there are, and their options as flags.
//! - [`spec`]: a scheme as text.
//! - [`predictor`]: a scheme at work.
//! - [`count`]: what one U-Net call sends and takes.
//! - [`plausible`]: what a worker's values can be.
//!
//! The schemes themselves:
//! - [`local`]: everything on the user's device.
//! - [`auto`]: whichever of these is the fastest.
//! - [`ppidm`]: the paper's: layers cut into strips and sent to workers.
//! - [`blind`]: ours: workers multiply shares of features, and learn nothing.
//! - [`resident`]: ours: workers keep their strips for a whole step.

pub mod auto;
pub mod blind;
pub mod count;
pub mod local;
pub mod plausible;
pub mod ppidm;
pub mod predictor;
pub mod registry;
pub mod resident;
pub mod scheme;
pub mod spec;

pub use predictor::{Account, Finished, Placed, Predictor};
pub use scheme::{Exposure, Options, Rules, Scheme, Setting, Sizes, UserParameters, Uses};

//! The user's side of Lacuna: everything that stays on the machine of the person who asks for a picture.
#![deny(missing_docs)]

pub mod error;
pub mod fleet;
pub mod model_dir;
pub mod noise;
pub mod schedulers;
pub mod schemes;
pub mod text;
pub mod vae;

pub use error::{Error, Result};

//! The user's side of Lacuna: everything that stays on the machine of the person who asks for a picture.

pub mod noise;
pub mod schedulers;

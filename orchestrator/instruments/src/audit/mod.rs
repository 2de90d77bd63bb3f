//! What an honest-but-curious provider can make of what it sees.
//!
//! The attacker has one provider's worker. It knows the model, the protocol and how prompts look, keeps all
//! that the worker is sent, and trains on pictures of its own. What it recovers of held-out pictures bounds
//! what a provider learns from below: a better attack may do more.
//!
//! # Layout
//!
//! - [`prompts`]: what the pictures show.
//! - [`corpus`]: the pictures, made once.
//! - [`target`]: one provider's worker among the others.
//! - [`shares`]: what a worker has under `blind`.
//! - [`uniformity`]: whether its words are uniform.
//! - [`independence`]: whether they tell two prompts apart.
//! - [`watch`]: what is known of each scheme that is attacked.
//! - [`arrange`]: tensors put side by side.
//! - [`view`]: what the provider has of each picture.
//! - [`attacks`]: what it makes of that.
//! - [`ridge`]: the regressions that the attacks train.
//! - [`network`]: the convolutional network that one of them trains.
//! - [`painter`]: the model as one of them has it, a prior.
//! - [`score`]: how near a guess comes.
//! - [`table`], [`sheet`], [`font`]: the results as text and as pictures.
//! - [`outcome`]: all attacks on one placement; [`trial`]: on all of a model's.

pub mod arrange;
pub mod attacks;
pub mod corpus;
pub mod font;
pub mod independence;
pub mod network;
pub mod outcome;
pub mod painter;
pub mod prompts;
pub mod ridge;
pub mod score;
pub mod shares;
pub mod sheet;
pub mod table;
pub mod target;
pub mod trial;
pub mod uniformity;
pub mod view;
pub mod watch;

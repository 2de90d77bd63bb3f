//! The U-Net as a service on this machine's loopback: what other programs make pictures with, `diffusers` for one.
//!
//! A client opens a *picture* with what the U-Net is told of it (prompt embeddings and what belongs to them), makes U-Net
//! calls in it, and closes it. A picture is a session on each worker. The bytes are in `docs/python.md`.
//!
//! - [`bounds`]: how large pictures may be, and the shapes of what comes.
//! - [`message`]: what is said beside the tensors.
//! - [`place`]: where pictures of each size are computed, under the policy.
//! - [`picture`]: one open picture, a thread that makes its calls.
//! - [`pictures`]: all that are open.
//! - [`facts`]: what is told of the model.
//! - [`refusal`]: everything that is refused, with a word for programs.
//! - [`guard`]: who is let in.
//! - [`door`]: where it listens, and the file that says so to clients of the same user.
//! - [`service`]: the HTTP routes.
#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod bounds;
pub mod door;
pub mod facts;
pub mod guard;
pub mod message;
pub mod picture;
pub mod pictures;
pub mod place;
pub mod refusal;
pub mod service;

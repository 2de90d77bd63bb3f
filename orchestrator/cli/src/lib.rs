//! The program `lacuna`: it reads arguments and prints. What it does is done by `lacuna_orchestrator`, which makes
//! pictures, and `lacuna_instruments`, which measures them.
//!
//! - [`cli`]: the command line.
//! - [`commands`]: the commands, one file each.
//! - [`ending`]: how a command ends: by itself, or by a signal.
//! - [`given`]: the flags of a command, to be given again.
// They end the program where nobody listens: see lacuna_orchestrator::output::console.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod commands;
pub mod ending;
pub mod given;

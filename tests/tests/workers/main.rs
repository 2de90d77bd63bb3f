//! What workers are sent, take and refuse, and what becomes of a picture when one is lost or bad.
//!
//! One program for all of them: each program of tests takes half a minute to build.

mod adapters_sent;
mod bad_introductions;
mod bad_replies;
mod bad_workers;
mod checkpoint;
mod failover;
mod gates;
mod pushes;
mod relay;
mod requests;
mod sessions;
mod verify;
mod versions;

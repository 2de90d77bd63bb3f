//! Everything that can go wrong.

/// The result of beginning to tell.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why nothing can be told. The address is not repeated: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The collector's address is none.
    #[error(
        "{variable}: {reason}; it is the address of a collector, such as http://127.0.0.1:4318"
    )]
    Endpoint {
        /// Where it stands.
        variable: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Everybody on the way to the collector would read what is sent.
    #[error(
        "{variable}: a collector on another machine is reached by https; OTEL_EXPORTER_OTLP_INSECURE=true says that plain HTTP is \
         good enough"
    )]
    Plain {
        /// Where its address stands.
        variable: &'static str,
    },
    /// What sends cannot be made.
    #[error("cannot send spans: {0}")]
    Exporter(String),
}

//! Names of machines, so that the same one reads the same.

use url::Url;

/// How every name of this machine itself is told from others.
pub const LOOPBACK: &str = "localhost";

/// The host of an address, so that the same one reads the same: all that lead to this machine are
/// [`LOOPBACK`].
pub fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    // A literal IPv6 address is in brackets.
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<std::net::IpAddr>() {
        // An IPv4 address may be written as an IPv6 one.
        Ok(address) => match address.to_canonical() {
            // Nowhere in particular is here, too: that is where a connection to it goes.
            own if own.is_loopback() || own.is_unspecified() => LOOPBACK.into(),
            other => other.to_string(),
        },
        // RFC 6761: names that never leave the machine.
        Err(_) if host.ends_with(".localhost") => LOOPBACK.into(),
        Err(_) => host,
    }
}

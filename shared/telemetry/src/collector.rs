//! Spans, sent to a collector by OpenTelemetry's protocol (OTLP, binary over HTTP).
//!
//! What leaves is the spans of this project and their fields, which name a session and the number of a request, and the times: no
//! line of the log, and nothing of dependencies.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use url::{Host, Url};

use crate::error::{Error, Result};
use crate::{ENDPOINTS, Told, is_own};

/// What a collector may take for what is sent at a time, and what is left at the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Of this process.
static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// What sends spans of the program `name`, if a collector is named.
pub(crate) fn spans(name: &'static str) -> Result<Option<Told>> {
    let of = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut named = ENDPOINTS.iter().filter_map(|&name| Some((name, of(name)?)));
    let Some((variable, text)) = named.next() else {
        return Ok(None);
    };
    let insecure = of("OTEL_EXPORTER_OTLP_INSECURE");
    let insecure = insecure.is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let url = address(variable, &text, insecure)?;
    // The client has a runtime of its own, which cannot be made within another.
    let made = std::thread::spawn(move || exporter(url)).join();
    let exporter = made.map_err(|_| Error::Exporter("its thread ended".into()))??;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_service_name(name).build())
        .build();
    let tracer = provider.tracer("lacuna");
    PROVIDER
        .set(provider)
        .map_err(|_| Error::Exporter("it was begun before".into()))?;
    let filter = filter_fn(|said| said.is_span() && is_own(said));
    let layer = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_filter(filter.with_max_level_hint(LevelFilter::DEBUG));
    Ok(Some(layer.boxed()))
}

/// Where spans go, of what stands in the `variable`.
fn address(variable: &'static str, text: &str, insecure: bool) -> Result<Url> {
    let wrong = |reason: String| Error::Endpoint { variable, reason };
    // The wider variable is the beginning of an address, of which there is one for each kind of thing that is told.
    let text = match variable == ENDPOINTS[0] {
        true => text.to_owned(),
        false => format!("{}/v1/traces", text.trim_end_matches('/')),
    };
    let url = Url::parse(&text).map_err(|error| wrong(error.to_string()))?;
    let is_loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.to_canonical().is_loopback(),
        None => return Err(wrong("it names no machine".into())),
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback || insecure => Ok(url),
        "http" => Err(Error::Plain { variable }),
        _ => Err(wrong("it begins with neither http:// nor https://".into())),
    }
}

fn exporter(url: Url) -> Result<SpanExporter> {
    let failed = |error: String| Error::Exporter(error);
    // The first call installs it; from then on it is there, which is all that is asked for.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::blocking::Client::builder()
        .timeout(PATIENCE)
        // Spans go to the collector that is named, and to nobody whom it names.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|e| failed(e.to_string()))?;
    SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(url)
        .build()
        .map_err(|e| failed(e.to_string()))
}

/// Sends what is left.
pub(crate) fn finish() {
    if let Some(provider) = PROVIDER.get() {
        // Nobody is there any more who could be told that it failed.
        let _ = provider.shutdown_with_timeout(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_go_in_the_clear_to_this_machine_alone() {
        let [own, wide] = ENDPOINTS;
        let to = |text: &str, insecure| address(wide, text, insecure).map(String::from);
        for (text, wanted) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
            ("http://[::1]:4318/otlp", "http://[::1]:4318/otlp/v1/traces"),
            ("https://c.example", "https://c.example/v1/traces"),
        ] {
            assert_eq!(to(text, false).unwrap(), wanted);
        }
        let whole = address(own, "https://c.example/x", false).unwrap();
        assert_eq!(whole.as_str(), "https://c.example/x");
        for text in [
            "http://198.18.9.9:4318",
            "http://c.example",
            "http://localhost.example",
            "http://[::ffff:198.18.9.9]",
        ] {
            let error = to(text, false).unwrap_err().to_string();
            assert!(error.contains(wide) && error.contains("https"), "{error}");
            assert!(to(text, true).is_ok());
        }
        for text in [
            "127.0.0.1:4318",
            "localhost:4318",
            "grpc://127.0.0.1",
            "https://",
        ] {
            let error = to(text, true).unwrap_err();
            assert!(matches!(error, Error::Endpoint { .. }), "{text}: {error}");
        }
        // A password in it is for no log.
        let error = to("http://me:secret@c.example", false).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

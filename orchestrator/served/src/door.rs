//! Where the service listens, and the file that says so to clients of the same user.

use std::fs::DirBuilder;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lacuna_files::small::read_small;
use lacuna_orchestrator::{Error, Result};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::guard::Guard;

/// How long whoever listens there may take to be met.
const MEETING: Duration = Duration::from_millis(500);

/// A socket on loopback, its token, and the file that tells both. The file is gone when this is dropped.
#[derive(Debug)]
pub struct Door {
    listener: Option<TcpListener>,
    address: SocketAddr,
    path: PathBuf,
    told: Told,
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    /// `http://127.0.0.1:PORT`.
    url: String,
    /// What requests must show.
    token: String,
}

/// The file's usual place: of the user's running session where the system has such, else of the home.
///
/// # Errors
/// [`Error::Request`] where neither is known.
pub fn usual_path() -> Result<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from);
    let folder = folder("XDG_RUNTIME_DIR")
        .map(|running| running.join("lacuna"))
        .or_else(|| folder("HOME").map(|home| home.join(".lacuna")));
    let unknown =
        || Error::Request("neither XDG_RUNTIME_DIR nor HOME is set; give --door FILE".into());
    Ok(folder.ok_or_else(unknown)?.join("unet.json"))
}

impl Door {
    /// Listens on `port` of loopback (0: one that is free), and says so in the file at `path`, which its owner alone can read.
    ///
    /// # Errors
    /// [`Error::Request`] where another service has that file, or the port is taken; [`Error::Output`].
    pub async fn open(port: u16, path: &Path) -> Result<Self> {
        check_free(path)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
        let refused = |e: std::io::Error| Error::Request(format!("--port {port}: {e}"));
        let listener = listener.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let told = Told {
            url: format!("http://{address}"),
            token: uuid::Uuid::new_v4().simple().to_string(),
        };
        write_private(path, &told).map_err(|e| Error::Output {
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
        Ok(Self {
            listener: Some(listener),
            address,
            path: path.to_owned(),
            told,
        })
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.told.url
    }

    /// The file that says where, with the token.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it asks of requests.
    pub fn guard(&self) -> Guard {
        Guard::new(&self.told.token, self.address)
    }

    /// The socket; once.
    pub(crate) fn take_listener(&mut self) -> Option<TcpListener> {
        self.listener.take()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Another service may have taken the place.
        if read(&self.path).as_ref() == Some(&self.told) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn read(path: &Path) -> Option<Told> {
    serde_json::from_str(&read_small(path).ok()?).ok()
}

/// What nobody listens behind is left over.
fn check_free(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let Some(told) = read(path) else {
        return Err(Error::Request(format!(
            "--door {}: what is there was not written by `lacuna unet`; give another name",
            path.display()
        )));
    };
    let address = told
        .url
        .strip_prefix("http://")
        .and_then(|it| it.parse().ok());
    match address.map(|address: SocketAddr| TcpStream::connect_timeout(&address, MEETING)) {
        Some(Ok(_)) => Err(Error::Request(format!(
            "--door {}: a `lacuna unet` serves there already, at {}; end it, or give --door another file for this one",
            path.display(),
            told.url
        ))),
        _ => Ok(()),
    }
}

/// Writes a file that is there whole or not at all, of the mode 0600, in a folder of its owner's.
fn write_private(path: &Path, told: &Told) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)?;
    // Such a file has the mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec(told)?)?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_door_is_its_owners_and_gone_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("unet.json");
        let door = Door::open(0, &path).await.unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&path), 0o600);
            assert_eq!(mode(path.parent().unwrap()), 0o700);
        }
        let told = read(&path).unwrap();
        assert_eq!(told.url, door.url());
        assert!(told.token.len() >= 32);
        // One at a time.
        let second = Door::open(0, &path).await.unwrap_err().to_string();
        assert!(
            second.contains(door.url()) && second.contains("--door"),
            "{second}"
        );
        drop(door);
        assert!(!path.exists());
        // Nobody's own file is written over.
        let own = folder.path().join("own.json");
        std::fs::write(&own, "{}").unwrap();
        assert!(
            Door::open(0, &own)
                .await
                .unwrap_err()
                .to_string()
                .contains("--door")
        );
        // What a service left that was killed is no service.
        write_private(&path, &told).unwrap();
        let next = Door::open(0, &path).await.unwrap();
        assert_ne!(read(&path).unwrap(), told);
        // Nor is it taken away from another.
        write_private(&path, &told).unwrap();
        drop(next);
        assert_eq!(read(&path), Some(told));
    }
}

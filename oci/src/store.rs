//! The images that are ready: one directory for each manifest digest, and which tag means which digest.
//!
//! ```text
//! <dir>/sha256/<hex>/{image.erofs, config.json}   complete and read-only, or not there
//! <dir>/tags.json                                 reference → digest, when it was last asked for
//! <dir>/tmp/<name>/{lock, …}                      work in progress; without a holder of `lock`: an orphan
//! <dir>/locks/{<reference>, <digest>}             held while a reference is resolved, an image is made
//! <dir>/lock                                      held for moments: tags.json, tmp
//! ```

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::assemble::{Job, sync_directory};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{PullError, StoreError};
use crate::lock::Lock;
use crate::progress::{Meter, Phase, Progress};
use crate::reference::ImageRef;
use crate::registry::RegistryOptions;
use crate::source::Found;
use crate::tags::Tags;
use crate::workspace::Workspace;

/// What an image becomes, and where images come from.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Length of each EROFS file; what the image does not need of it is a hole.
    pub image_bytes: u64,
    /// How registries are reached.
    pub registry: RegistryOptions,
}

/// Images made ready on this machine. Any number of stores, in any number of processes, may share a directory.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    options: StoreOptions,
}

/// An image that is ready: a verified, read-only root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rootfs {
    /// Digest of the manifest it was made from.
    pub digest: Digest,
    /// The EROFS file. Never changes; open it read-only.
    pub path: PathBuf,
    /// How the image wants to be run.
    pub config: ImageConfig,
}

/// Whether a tag that is known is asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// A known tag means what it meant; the registry is asked about unknown ones only.
    IfMissing,
    /// The source is asked what the tag means now.
    Always,
}

/// Version of what this code writes; images of another version are made anew.
const FORMAT: u32 = 2;
const TICK: Duration = Duration::from_millis(200);

/// `config.json`.
#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    reference: String,
    config: ImageConfig,
}

impl Store {
    /// Opens the store in `dir`, which is created where it is missing, and removes what dead processes left.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        for part in ["", "sha256", "tmp", "locks"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(|source| StoreError { action: "create", path, source })?;
        }
        let store = Self { dir: dir.to_owned(), options };
        Workspace::sweep(&store.dir)?;
        Ok(store)
    }

    /// The image a reference means, if it is ready. Asks no registry; a local source is looked at again, because
    /// that is cheap and the image may have been built anew.
    pub async fn find(&self, image: &ImageRef) -> Result<Option<Rootfs>, StoreError> {
        if image.is_local()
            && let Ok(found) = Found::resolve(image, &self.options.registry).await
        {
            return Ok(self.installed(found.digest()));
        }
        let tags = Tags::read(&self.dir)?;
        Ok(tags.get(&image.to_string()).and_then(|tag| self.installed(&tag.digest)))
    }

    /// Makes an image ready, unless it is, and says where it is. Work that another task or process is doing for
    /// the same image is waited for and used. Dropping the future gives up and leaves nothing behind.
    ///
    /// # Errors
    /// [`PullError`]: the store is as it was before.
    pub async fn ensure(
        &self,
        image: &ImageRef,
        refresh: Refresh,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Rootfs, PullError> {
        let meter = Meter::default();
        let mut work = std::pin::pin!(self.make_ready(image, refresh, &meter));
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                // Losing a tick loses nothing but one report.
                _ = ticks.tick() => {
                    let now = meter.read();
                    if told != Some(now) {
                        progress(now);
                        told = Some(now);
                    }
                }
            }
        }
    }

    /// All images that are ready.
    pub fn list(&self) -> Result<Vec<Rootfs>, StoreError> {
        let path = self.dir.join("sha256");
        let entries = fs::read_dir(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = entries.map_err(|source| StoreError { action: "read", path, source })?;
        let digests = entries.iter().filter_map(|entry| {
            entry.file_name().to_str().and_then(|hex| Digest::parse(&format!("sha256:{hex}")).ok())
        });
        Ok(digests.filter_map(|digest| self.installed(&digest)).collect())
    }

    /// Removes an image. Programs that have its file open keep it until they close it.
    pub async fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let _made_by_nobody = Lock::acquire(&self.lock_path(digest.hex()), || ()).await?;
        let workspace = Workspace::create(&self.dir)?;
        self.displace(digest, &workspace)
    }

    async fn make_ready(&self, image: &ImageRef, refresh: Refresh, meter: &Meter) -> Result<Rootfs, PullError> {
        let asked = SystemTime::now();
        if refresh == Refresh::IfMissing
            && let Some(ready) = self.find(image).await?
        {
            return Ok(ready);
        }
        let shown = image.to_string();
        let reference_lock = self.lock_path(Digest::of(shown.as_bytes()).hex());
        let _resolved_by_us = Lock::acquire(&reference_lock, || meter.enter(Phase::Waiting, 0)).await?;
        // Whoever held the lock may have done the work meanwhile.
        if let Some(tag) = Tags::read(&self.dir)?.get(&shown) {
            let fresh = refresh == Refresh::IfMissing && !image.is_local() || tag.checked >= asked;
            if let (true, Some(ready)) = (fresh, self.installed(&tag.digest)) {
                return Ok(ready);
            }
        }
        meter.enter(Phase::Resolving, 0);
        let found = Found::resolve(image, &self.options.registry).await?;
        let digest = found.digest().clone();
        let _made_by_us = Lock::acquire(&self.lock_path(digest.hex()), || meter.enter(Phase::Waiting, 0)).await?;
        let ready = match self.installed(&digest) {
            Some(ready) => ready,
            None => self.make(&shown, found, meter).await?,
        };
        Tags::set(&self.dir, &shown, digest)?;
        Ok(ready)
    }

    /// Makes an image that is not ready; its lock is held.
    async fn make(&self, image: &str, found: Found, meter: &Meter) -> Result<Rootfs, PullError> {
        let digest = found.digest().clone();
        let config = found.config(image).await?;
        // Shared with the blocking work: what is left is removed when both have ended.
        let workspace = Arc::new(Workspace::create(&self.dir)?);
        let output = workspace.path().join("image");
        fs::create_dir(&output).map_err(|error| PullError::io("create", &output, error))?;

        let is_download = matches!(found, Found::Registry(_));
        let phase = if is_download { Phase::Downloading } else { Phase::Unpacking };
        meter.enter(phase, found.layer_bytes());
        let (layers, handing_out) = found.layers(workspace.path(), meter.clone());
        let unpacking = if is_download { Meter::default() } else { meter.clone() };
        let cancel = CancelOnDrop::default();
        let merging = tokio::task::spawn_blocking({
            let (image, digest, image_bytes) = (image.to_owned(), digest.clone(), self.options.image_bytes);
            let (workspace, cancelled, meter) = (Arc::clone(&workspace), Arc::clone(&cancel.0), meter.clone());
            let (output, diff_ids) = (output.clone(), config.diff_ids);
            move || {
                let target = output.join("image.erofs");
                let job = Job {
                    image: &image,
                    digest: &digest,
                    diff_ids: &diff_ids,
                    image_bytes,
                    target: &target,
                    scratch: workspace.path(),
                    cancelled: &cancelled,
                    meter: &meter,
                    unpacking: &unpacking,
                };
                job.run(layers)
            }
        });
        let (merged, ()) = tokio::join!(merging, handing_out);
        merged.map_err(|_| PullError::Cancelled { image: image.to_owned() })??;
        self.install(image, &digest, config.image, &workspace, &output)
    }

    /// Moves a complete image to its place, in one step.
    fn install(
        &self,
        image: &str,
        digest: &Digest,
        config: ImageConfig,
        workspace: &Workspace,
        output: &Path,
    ) -> Result<Rootfs, PullError> {
        let record = Record { format: FORMAT, reference: image.to_owned(), config: config.clone() };
        let record_path = output.join("config.json");
        let failed = |error| PullError::io("write", &record_path, error);
        let text = serde_json::to_vec_pretty(&record).map_err(|error| failed(error.into()))?;
        fs::write(&record_path, text).and_then(|()| fs::File::open(&record_path)?.sync_all()).map_err(failed)?;
        for file in ["config.json", "image.erofs"] {
            let path = output.join(file);
            let read_only = Permissions::from_mode(0o444);
            fs::set_permissions(&path, read_only).map_err(|error| PullError::io("protect", &path, error))?;
        }
        sync_directory(output)?;
        self.displace(digest, workspace)?;
        let home = self.home(digest);
        fs::rename(output, &home).map_err(|error| PullError::io("create", &home, error))?;
        sync_directory(&self.dir.join("sha256"))?;
        Ok(Rootfs { digest: digest.clone(), path: home.join("image.erofs"), config })
    }

    /// Moves what is at an image's place, if anything, to where it is removed from with `workspace`.
    fn displace(&self, digest: &Digest, workspace: &Workspace) -> Result<(), StoreError> {
        let path = self.home(digest);
        match fs::rename(&path, workspace.path().join("displaced")) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError { action: "replace", path, source })
            }
            _ => Ok(()),
        }
    }

    /// The image of this digest, if it is complete and of the kind this store makes.
    fn installed(&self, digest: &Digest) -> Option<Rootfs> {
        let home = self.home(digest);
        let record: Record = serde_json::from_slice(&fs::read(home.join("config.json")).ok()?).ok()?;
        let path = home.join("image.erofs");
        let length = fs::metadata(&path).ok()?.len();
        let usable = record.format == FORMAT && length == self.options.image_bytes;
        usable.then(|| Rootfs { digest: digest.clone(), path, config: record.config })
    }

    fn home(&self, digest: &Digest) -> PathBuf {
        self.dir.join("sha256").join(digest.hex())
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.dir.join("locks").join(name)
    }
}

/// Tells blocking work that nobody waits for it any more.
#[derive(Default)]
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

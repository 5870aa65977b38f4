//! The engine's life: what its configuration asks for is started in order, changed while it runs, and taken down.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use builtin_configuration::Configuration;
use engine_builtin::{Builtin, BuiltinError, Engine};
use engine_router::ConnId;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::access::Services;
use crate::builtins::{Given, Kind, Made, kind};
use crate::children::Children;
use crate::config::{Config, Entry};
use crate::handle::Handle;
use crate::hub::Hub;
use crate::listener::Listener;
use crate::logging::Logging;
use crate::reload::{self, Reload};
use crate::server::{Shared, accept_tcp};
use crate::sys;
use crate::vms::{VmSocket, accept_vms};

/// How long stored settings may take to be read or taken.
const SETTINGS_PATIENCE: Duration = Duration::from_secs(10);

/// Before settings that could not be read are read once more.
const SETTINGS_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("could not listen on {host}:{port}")]
    Listen { host: String, port: u16, source: io::Error },
    #[error("could not listen on socket {}", path.display())]
    VmSocket { path: PathBuf, source: io::Error },
    #[error("could not start {program}")]
    Child { program: String, source: io::Error },
    #[error("could not prepare the home {}", path.display())]
    Home { path: PathBuf, source: io::Error },
    #[error("worker `{worker}` could not be started")]
    Builtin { worker: String, source: BuiltinError },
}

impl EngineError {
    /// The reader's next step, where we know one.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Listen { port, source, .. } if source.kind() == io::ErrorKind::AddrInUse => Some(format!(
                "another engine may be running: stop it, or set another `port` than {port} under `iii-worker-manager`"
            )),
            Self::Child { .. } => Some("the programs of one build belong in one folder; see III_BIN_DIR".into()),
            Self::Builtin { worker, source: BuiltinError::Settings(_) } => {
                Some(format!("mend the block of `{worker}` in config.yaml, or its file in data/configuration"))
            }
            Self::Listen { .. } | Self::VmSocket { .. } | Self::Home { .. } | Self::Builtin { .. } => None,
        }
    }
}

/// Listens, starts the workers and daemons, and serves until `stop` is cancelled; then takes everything down.
///
/// # Errors
/// What could not be started; nothing is left running then.
pub async fn serve(config: Config, logging: Logging, stop: CancellationToken) -> Result<(), EngineError> {
    sys::raise_open_files();
    let mut listening = Vec::new();
    for listener in &config.listeners {
        listening.push((bind(listener).await?, listener.clone()));
    }
    let port = listening.first().and_then(|(socket, _)| socket.local_addr().ok()).map_or(0, |address| address.port());
    let socket = VmSocket::bind(port)?;
    let vm_listener = socket.listen()?;
    let hub = Hub::new();
    let engine: Engine = Arc::new(Handle(Arc::clone(&hub)));
    // Peers outlive `stop`: the daemons still have things to say while they end.
    let mut live = Live {
        hub: Arc::clone(&hub),
        engine,
        services: Arc::default(),
        logging,
        children: Children::new(port, socket.path.clone()),
        config: Config { builtins: Vec::new(), listeners: Vec::new(), ..config.clone() },
        configuration: None,
        builtins: Vec::new(),
        listeners: Vec::new(),
        stop: CancellationToken::new(),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(tick(Arc::clone(&hub), live.stop.clone()));
    let mut started = live.start_builtins(&config.builtins).await;
    if started.is_ok() {
        for (socket, listener) in listening {
            live.listen(socket, listener);
        }
        live.protect();
        let guests = Shared::new(hub, Arc::clone(&live.services), config.listeners[0].open(), live.stop.clone());
        tasks.spawn(accept_vms(vm_listener, guests));
        started = live.children.start(&config).await;
    }
    if started.is_ok() {
        let mut changes = config.file.as_deref().and_then(reload::watch);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                reload = reload::next(&mut changes) => live.reload(reload).await,
            }
        }
        info!("stopping");
    }
    live.children.stop().await;
    live.stop_builtins().await;
    live.stop.cancel();
    tasks.shutdown().await;
    started
}

async fn bind(listener: &Listener) -> Result<TcpListener, EngineError> {
    let failed = |source| EngineError::Listen { host: listener.host.clone(), port: listener.port, source };
    TcpListener::bind((listener.host.as_str(), listener.port)).await.map_err(failed)
}

async fn tick(hub: Arc<Hub>, stop: CancellationToken) {
    let mut interval = tokio::time::interval(Duration::from_millis(500));
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        hub.tick();
    }
}

/// Everything that runs.
struct Live {
    hub: Arc<Hub>,
    engine: Engine,
    services: Arc<Services>,
    logging: Logging,
    children: Children,
    /// As it is served now.
    config: Config,
    configuration: Option<Arc<Configuration>>,
    builtins: Vec<Running>,
    listeners: Vec<Listening>,
    /// Of connections and listeners.
    stop: CancellationToken,
}

/// A built-in worker that runs.
struct Running {
    entry: Entry,
    conn: ConnId,
    builtin: Arc<dyn Builtin>,
    /// Ends the task that follows its settings.
    following: CancellationToken,
}

struct Listening {
    listener: Listener,
    stop: CancellationToken,
    accepting: tokio::task::JoinHandle<()>,
}

impl Live {
    /// Makes all, so that each finds the others' functions, then starts them in order. One that cannot be started (a
    /// port in use, say) is left out, and the others run.
    async fn start_builtins(&mut self, entries: &[Entry]) -> Result<(), EngineError> {
        for entry in entries {
            self.make(entry.clone()).await?;
        }
        for running in std::mem::take(&mut self.builtins) {
            let name = running.entry.name.clone();
            if let Err(error) = self.begin(running).await {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                error!(worker = name, %error, cause, "a worker could not be started and is left out");
            }
        }
        Ok(())
    }

    async fn stop_builtins(&mut self) {
        // Those who others build on were started first.
        while let Some(running) = self.builtins.pop() {
            self.end(running).await;
        }
    }

    /// Makes a worker and puts it where calls find it.
    async fn make(&mut self, entry: Entry) -> Result<(), EngineError> {
        let failed = |source| EngineError::Builtin { worker: entry.name.clone(), source };
        if entry.name == builtin_configuration::NAME {
            let settings = entry.config.clone().unwrap_or(Value::Null);
            let made = builtin_configuration::create(Arc::clone(&self.engine), settings).await.map_err(failed)?;
            self.configuration = Some(Arc::clone(&made));
            self.place(entry, made);
            return Ok(());
        }
        let Some(kind) = kind(&entry.name) else { return Ok(()) };
        let settings = self.settings(kind, &entry).await.map_err(failed)?;
        let declared = entry.config.clone();
        let given = Given { settings: settings.clone(), declared: declared.clone() };
        let made = match (kind.make)(Arc::clone(&self.engine), given).await {
            Err(error) if Some(&settings) != declared.as_ref() && kind.is_configurable => {
                let reason = chain(&error);
                warn!(worker = entry.name, reason, "stored settings do not work, those of config.yaml are used");
                let given = Given { settings: declared.clone().unwrap_or(Value::Null), declared };
                (kind.make)(Arc::clone(&self.engine), given).await
            }
            made => made,
        };
        let Made { builtin, telemetry, gauges, requests, level } = made.map_err(failed)?;
        if let Some(level) = level {
            tokio::spawn(self.logging.clone().follow(level));
        }
        if telemetry.is_some() {
            self.services.set_telemetry(telemetry);
        }
        if gauges.is_some() {
            self.hub.set_gauges(gauges);
        }
        if requests.is_some() {
            self.services.set_requests(requests);
        }
        self.place(entry, builtin);
        Ok(())
    }

    fn place(&mut self, entry: Entry, builtin: Arc<dyn Builtin>) {
        let conn = self.hub.install(Arc::clone(&builtin));
        self.builtins.push(Running { entry, conn, builtin, following: self.stop.child_token() });
    }

    /// Starts what was made, or ends it.
    async fn begin(&mut self, running: Running) -> Result<(), BuiltinError> {
        if let Err(error) = running.builtin.start().await {
            self.end(running).await;
            return Err(error);
        }
        self.follow(&running);
        self.builtins.push(running);
        Ok(())
    }

    async fn end(&mut self, running: Running) {
        running.following.cancel();
        running.builtin.stop().await;
        self.hub.uninstall(running.conn);
        match running.entry.name.as_str() {
            "iii-observability" => {
                self.services.set_telemetry(None);
                self.hub.set_gauges(None);
            }
            "iii-http-functions" => self.services.set_requests(None),
            _ => {}
        }
    }

    /// What a worker is to be made with: what is stored, or its block, which is stored then.
    async fn settings(&self, kind: &Kind, entry: &Entry) -> Result<Value, BuiltinError> {
        let block = entry.config.clone().unwrap_or(Value::Null);
        let schema = (kind.schema)();
        if !block.is_null() {
            let problems = builtin_configuration::check(&schema, &block);
            problems.map_err(|error| BuiltinError::Settings(error.message))?;
        }
        let Some(configuration) = self.configuration.as_ref().filter(|_| kind.is_configurable) else {
            return Ok(block);
        };
        let seed = if block.is_null() { serde_json::json!({}) } else { block.clone() };
        let storing = async {
            configuration.register_settings(kind.name, "Settings of a built-in worker", schema, seed).await?;
            configuration.read(kind.name).await
        };
        match tokio::time::timeout(SETTINGS_PATIENCE, storing).await {
            Ok(Ok(stored)) => Ok(stored.filter(|stored| !stored.is_null()).unwrap_or(block)),
            Ok(Err(error)) => {
                warn!(worker = kind.name, reason = error.message, "settings are not stored, config.yaml's are used");
                Ok(block)
            }
            Err(_) => {
                warn!(worker = kind.name, "settings could not be read in time, config.yaml's are used");
                Ok(block)
            }
        }
    }

    /// Has a worker take its settings whenever they change.
    fn follow(&self, running: &Running) {
        let configurable = kind(&running.entry.name).is_some_and(|kind| kind.is_configurable);
        let Some(configuration) = self.configuration.clone().filter(|_| configurable) else { return };
        let (builtin, stop) = (Arc::clone(&running.builtin), running.following.clone());
        let mut changes = configuration.changes();
        tokio::spawn(async move {
            let name = builtin.name();
            loop {
                match stop.run_until_cancelled(changes.recv()).await {
                    Some(Ok(id)) if id != name => {}
                    // Which changes were missed is not known: this may be among them.
                    Some(Ok(_) | Err(RecvError::Lagged(_))) => {
                        let applying = apply(&configuration, &*builtin);
                        if stop.run_until_cancelled(applying).await.is_none() {
                            return;
                        }
                    }
                    Some(Err(RecvError::Closed)) | None => return,
                }
            }
        });
    }

    fn listen(&mut self, socket: TcpListener, listener: Listener) {
        if let Ok(address) = socket.local_addr() {
            info!(%address, "listening");
        }
        let stop = self.stop.child_token();
        let shared = Shared::new(Arc::clone(&self.hub), Arc::clone(&self.services), listener.clone(), stop.clone());
        let accepting = tokio::spawn(accept_tcp(socket, shared));
        self.config.listeners.push(listener.clone());
        self.listeners.push(Listening { listener, stop, accepting });
    }

    /// Makes what runs what the file asks for now. What cannot be done leaves the rest as it was.
    async fn reload(&mut self, reload: Reload) {
        let wanted = match reload {
            Reload::Config(config) => *config,
            Reload::Broken(problem) => {
                error!("reload: {problem}; the configuration before stays in use");
                return;
            }
        };
        let now: Vec<Entry> = self.builtins.iter().map(|running| running.entry.clone()).collect();
        let plan = reload::plan(&now, &wanted.builtins);
        if let Err(problem) = self.check(&wanted, &plan) {
            error!("reload: {problem}; the configuration before stays in use");
            return;
        }
        for entry in plan.removed {
            if let Some(running) = self.take(&entry.name) {
                info!("reload: worker `{}` is removed", entry.name);
                self.end(running).await;
            }
        }
        for entry in plan.changed.into_iter().chain(plan.added) {
            // The others hold on to the one they were made with.
            if entry.name == builtin_configuration::NAME {
                warn!("reload: settings of `{}` take effect when the engine is started anew", entry.name);
            } else {
                self.replace(entry).await;
            }
        }
        self.reload_listeners(&wanted.listeners).await;
        if wanted.sandbox != self.config.sandbox {
            info!("reload: the sandbox daemon is started anew");
            if let Err(error) = self.children.restart_sandboxes(&wanted).await {
                error!("reload: {error}");
            }
            self.config.sandbox.clone_from(&wanted.sandbox);
        }
        if wanted.worker_vms != self.config.worker_vms {
            warn!("reload: settings of `iii-worker-ops` take effect when the engine is started anew");
        }
        for warning in &wanted.warnings {
            warn!("reload: {warning}");
        }
        info!("reload: done");
    }

    /// Whether everything can be made, as far as can be seen before something is ended for it.
    fn check(&self, wanted: &Config, plan: &reload::Plan) -> Result<(), String> {
        for entry in plan.changed.iter().chain(&plan.added) {
            let schema = match kind(&entry.name) {
                Some(kind) => (kind.schema)(),
                None if entry.name == builtin_configuration::NAME => builtin_configuration::schema(),
                None => continue,
            };
            if let Some(block) = &entry.config {
                let line = wanted.lines.get(&entry.name).map(|line| format!("line {line}: ")).unwrap_or_default();
                let problem =
                    |error: engine_protocol::ErrorBody| format!("{line}worker `{}`: {}", entry.name, error.message);
                builtin_configuration::check(&schema, block).map_err(problem)?;
            }
        }
        let first = self.config.listeners.first().map(|listener| (&listener.host, listener.port));
        let then = wanted.listeners.first().map(|listener| (&listener.host, listener.port));
        if first != then {
            return Err("the first listener moves with a new start of the engine only".to_owned());
        }
        Ok(())
    }

    fn take(&mut self, name: &str) -> Option<Running> {
        let at = self.builtins.iter().position(|running| running.entry.name == name)?;
        Some(self.builtins.remove(at))
    }

    /// Ends a worker and starts it with its new block; with the one before when that fails.
    async fn replace(&mut self, entry: Entry) {
        let name = entry.name.clone();
        let before = self.take(&name);
        let old = before.as_ref().map(|running| running.entry.clone());
        // The old one goes first: both may need the same port or file.
        if let Some(running) = before {
            self.end(running).await;
        }
        info!("reload: worker `{name}` is started{}", if old.is_some() { " anew" } else { "" });
        if let Err(error) = self.make_and_begin(entry).await {
            error!("reload: worker `{name}`: {}", chain(&error));
            if let Some(old) = old {
                warn!("reload: worker `{name}` goes back to its settings before");
                if let Err(error) = self.make_and_begin(old).await {
                    error!("reload: worker `{name}`: {}", chain(&error));
                }
            }
        }
    }

    async fn make_and_begin(&mut self, entry: Entry) -> Result<(), EngineError> {
        let name = entry.name.clone();
        self.make(entry).await?;
        let Some(running) = self.take(&name) else { return Ok(()) };
        self.begin(running).await.map_err(|source| EngineError::Builtin { worker: name, source })
    }

    /// New addresses are bound before anything is closed: one that cannot be bound changes nothing.
    async fn reload_listeners(&mut self, wanted: &[Listener]) {
        let address = |listener: &Listener| (listener.host.clone(), listener.port);
        let taken: Vec<_> = self.listeners.iter().map(|listening| address(&listening.listener)).collect();
        let mut sockets = Vec::new();
        for listener in wanted.iter().filter(|listener| !taken.contains(&address(listener))) {
            match bind(listener).await {
                Ok(socket) => sockets.push((socket, listener.clone())),
                Err(error) => return error!("reload: {}; listeners stay as they are", chain(&error)),
            }
        }
        let (kept, gone): (Vec<Listening>, Vec<Listening>) =
            std::mem::take(&mut self.listeners).into_iter().partition(|listening| wanted.contains(&listening.listener));
        self.listeners = kept;
        for listening in gone {
            info!("reload: {}:{} is closed", listening.listener.host, listening.listener.port);
            listening.stop.cancel();
            let _ = listening.accepting.await;
            // The same address under other rules.
            let same = |listener: &&Listener| address(listener) == address(&listening.listener);
            if let Some(listener) = wanted.iter().find(same) {
                match bind(listener).await {
                    Ok(socket) => sockets.push((socket, listener.clone())),
                    Err(error) => error!("reload: {}", chain(&error)),
                }
            }
        }
        for (socket, listener) in sockets {
            self.listen(socket, listener);
        }
        self.listeners.sort_by_key(|listening| wanted.iter().position(|listener| *listener == listening.listener));
        self.config.listeners = self.listeners.iter().map(|listening| listening.listener.clone()).collect();
        self.protect();
    }

    /// Nobody but host's workers offers what listeners ask.
    fn protect(&self) {
        self.hub.protect(self.config.listeners.iter().flat_map(Listener::functions).collect());
    }
}

/// Reads a worker's settings and has it take them. Whatever fails, those before stay.
async fn apply(configuration: &Configuration, builtin: &dyn Builtin) {
    let name = builtin.name();
    let mut read = tokio::time::timeout(SETTINGS_PATIENCE, configuration.read(name)).await;
    if read.is_err() {
        tokio::time::sleep(SETTINGS_PAUSE).await;
        read = tokio::time::timeout(SETTINGS_PATIENCE, configuration.read(name)).await;
    }
    let settings = match read {
        Ok(Ok(settings)) => settings.unwrap_or(Value::Null),
        Ok(Err(error)) => return warn!(worker = name, reason = error.message, "new settings could not be read"),
        Err(_) => return warn!(worker = name, "new settings could not be read in time"),
    };
    match tokio::time::timeout(SETTINGS_PATIENCE, builtin.apply(settings)).await {
        Ok(Ok(())) => info!(worker = name, "new settings are in use"),
        Ok(Err(error)) => warn!(worker = name, reason = chain(&error), "new settings are refused, those before stay"),
        Err(_) => warn!(worker = name, "new settings were not taken in time"),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(reason) = cause {
        text = format!("{text}: {reason}");
        cause = reason.source();
    }
    text
}

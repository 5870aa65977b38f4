//! What the router knows, and the one door to change it.

use std::collections::{BTreeMap, HashMap, HashSet};

use engine_protocol::{ErrorBody, InvocationResult, Message, RegisterFunction, WorkerRegistered};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::limits::{Held, Weight};
use crate::triggers::{Trigger, TriggerType};

/// Names one connection for the life of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// What happened.
#[derive(Debug)]
pub enum Input {
    Opened(Box<Opened>),
    Closed {
        conn: ConnId,
    },
    Received {
        conn: ConnId,
        message: Message,
    },
    /// The answer to [`Effect::CreateChannel`].
    ChannelCreated {
        conn: ConnId,
        invocation: Option<Uuid>,
        refs: Result<Box<RawValue>, ErrorBody>,
    },
    /// From time to time: lets changes of the function list be told.
    Tick,
}

/// A new connection.
#[derive(Debug)]
pub struct Opened {
    pub conn: ConnId,
    /// The worker's id, made by the caller: the router draws no random numbers.
    pub worker: Uuid,
    /// Secret with which the worker may later retire this connection.
    pub reattach_token: String,
    /// Set for connections from our own VMs: the name is the VM's, whatever the worker says.
    pub vm_worker: Option<String>,
    pub isolation: Option<String>,
    pub address: Option<String>,
}

/// What to do.
#[derive(Debug)]
pub enum Effect {
    Send {
        conn: ConnId,
        message: Message,
    },
    CreateChannel {
        conn: ConnId,
        invocation: Option<Uuid>,
        buffer: usize,
    },
    Close {
        conn: ConnId,
    },
    /// A registration that the protocol cannot answer was refused: a line for the log.
    Refused {
        conn: ConnId,
        error: ErrorBody,
    },
}

/// One worker's connection.
pub(crate) struct Connection {
    pub(crate) worker: Uuid,
    pub(crate) reattach_token: String,
    pub(crate) vm_worker: Option<String>,
    pub(crate) isolation: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) connected_at_ms: u64,
    pub(crate) metadata: Option<Metadata>,
    /// Whether something but `reattach` has arrived: only the first message may be one.
    pub(crate) spoken: bool,
    pub(crate) held: Held,
}

/// What a worker says about itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metadata {
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) runtime: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) os: Option<String>,
    pub(crate) pid: Option<u64>,
    pub(crate) isolation: Option<String>,
}

pub(crate) struct Provider {
    pub(crate) conn: ConnId,
    pub(crate) function: RegisterFunction,
}

/// A call that is with its executor.
pub(crate) struct Pending {
    pub(crate) executor: ConnId,
    /// Who wants the answer, and under which id; nobody for void calls and those of the engine.
    pub(crate) caller: Option<(ConnId, Uuid)>,
    pub(crate) function_id: String,
}

/// The routing table, without IO.
pub struct Router {
    pub(crate) now_ms: u64,
    pub(crate) version: String,
    next_id: u128,
    pub(crate) connections: BTreeMap<ConnId, Connection>,
    /// Live providers of each function, newest last.
    pub(crate) functions: BTreeMap<String, Vec<Provider>>,
    pub(crate) pending: HashMap<Uuid, Pending>,
    /// Live providers of each type, newest last.
    pub(crate) trigger_types: BTreeMap<String, Vec<TriggerType>>,
    pub(crate) triggers: BTreeMap<String, Trigger>,
    pub(crate) announced: HashSet<String>,
    pub(crate) effects: Vec<Effect>,
}

impl Router {
    /// `seed` is random: the ids of calls that the engine itself makes follow from it.
    #[must_use]
    pub fn new(version: &str, seed: u128) -> Self {
        Self {
            now_ms: 0,
            version: version.to_owned(),
            next_id: seed,
            connections: BTreeMap::new(),
            functions: BTreeMap::new(),
            pending: HashMap::new(),
            trigger_types: BTreeMap::new(),
            triggers: BTreeMap::new(),
            announced: HashSet::new(),
            effects: Vec::new(),
        }
    }

    /// Advances by one input. Reads no clock and does no IO: `now_ms` (since 1970) comes in, effects go out.
    pub fn step(&mut self, now_ms: u64, input: Input) -> Vec<Effect> {
        self.now_ms = now_ms;
        match input {
            Input::Opened(opened) => self.open(*opened),
            Input::Closed { conn } => self.leave(conn),
            Input::Received { conn, message } => self.receive(conn, message),
            Input::ChannelCreated { conn, invocation, refs } => {
                self.answer(conn, invocation, "engine::channels::create", refs.map(Some));
            }
            Input::Tick => self.announce_functions(),
        }
        std::mem::take(&mut self.effects)
    }

    fn open(&mut self, opened: Opened) {
        let Opened { conn, worker, reattach_token, vm_worker, isolation, address } = opened;
        let registered = WorkerRegistered { worker_id: worker, reattach_token: Some(reattach_token.clone()) };
        self.connections.insert(
            conn,
            Connection {
                worker,
                reattach_token,
                vm_worker,
                isolation,
                address,
                connected_at_ms: self.now_ms,
                metadata: None,
                spoken: false,
                held: Held::default(),
            },
        );
        self.send(conn, Message::WorkerRegistered(registered));
        self.announce_worker("worker_connected", worker);
    }

    fn receive(&mut self, conn: ConnId, message: Message) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let first = !std::mem::replace(&mut connection.spoken, true);
        match message {
            Message::InvokeFunction(call) => self.invoke(conn, call),
            Message::InvocationResult(result) => self.result(conn, result),
            Message::RegisterFunction(function) => self.register_function(conn, function),
            Message::UnregisterFunction(function) => self.unregister_function(conn, &function.id),
            Message::RegisterTriggerType(kind) => self.register_trigger_type(conn, kind),
            Message::UnregisterTriggerType(kind) => self.unregister_trigger_type(conn, &kind.id),
            Message::RegisterTrigger(trigger) => self.register_trigger(conn, trigger),
            Message::UnregisterTrigger(trigger) => self.unregister_trigger(conn, &trigger.id),
            Message::TriggerRegistrationResult(result) => self.trigger_result(conn, result),
            Message::Reattach(reattach) if first => self.reattach(conn, &reattach),
            Message::Ping => self.send(conn, Message::Pong),
            // Of no meaning from a worker, or of none any more.
            Message::Reattach(_)
            | Message::WorkerRegistered(_)
            | Message::RegisterService
            | Message::Pong
            | Message::Error(_) => {}
        }
    }

    fn register_function(&mut self, conn: ConnId, function: RegisterFunction) {
        // The engine's own functions are what RBAC, daemons and SDKs stand on: nobody takes them over.
        let reserved = function.id.is_empty() || function.id.starts_with("engine::");
        if reserved || self.refuse_registration(conn, &function.id) {
            return;
        }
        let own = |provider: &&Provider| provider.conn == conn;
        let before = self.functions.get(&function.id).and_then(|providers| providers.iter().find(own));
        let before = before.map(|provider| provider.function.bytes());
        if let Err(error) = self.make_room(conn, before, &function) {
            return self.refuse(conn, error);
        }
        let providers = self.functions.entry(function.id.clone()).or_default();
        providers.retain(|provider| provider.conn != conn);
        providers.push(Provider { conn, function });
    }

    fn unregister_function(&mut self, conn: ConnId, id: &str) {
        let Some(providers) = self.functions.get_mut(id) else { return };
        let Some(at) = providers.iter().position(|provider| provider.conn == conn) else { return };
        let gone = providers.remove(at);
        if providers.is_empty() {
            self.functions.remove(id);
        }
        self.give_back(conn, &gone.function);
    }

    pub(crate) fn send(&mut self, conn: ConnId, message: Message) {
        self.effects.push(Effect::Send { conn, message });
    }

    /// Answers a caller that wants an answer and is still there.
    pub(crate) fn answer(
        &mut self,
        conn: ConnId,
        invocation: Option<Uuid>,
        function_id: &str,
        result: Result<Option<Box<RawValue>>, ErrorBody>,
    ) {
        let Some(invocation_id) = invocation else { return };
        if !self.connections.contains_key(&conn) {
            return;
        }
        let (result, error) = match result {
            Ok(result) => (result, None),
            Err(error) => (None, Some(error)),
        };
        self.send(
            conn,
            Message::InvocationResult(InvocationResult {
                invocation_id,
                function_id: function_id.to_owned(),
                result,
                error,
                traceparent: None,
                baggage: None,
            }),
        );
    }

    pub(crate) fn fresh_id(&mut self) -> Uuid {
        self.next_id = self.next_id.wrapping_add(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        uuid::Builder::from_random_bytes(self.next_id.to_be_bytes()).into_uuid()
    }
}

//! The router behind one lock, the queue of every connection, and the workers in our own process.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use engine_builtin::{Answer, Binding, Builtin, Call, Invocation, LogLimit, Reply, Stats, Trace};
use engine_protocol::{
    ErrorBody, InvocationResult, InvokeFunction, Message, Payload, TriggerRegistrationResult, raw, with_caller,
};
use engine_router::{ConnId, Effect, Input, Installed, Opened, Router, Session};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};
use uuid::Uuid;

use crate::channels::{Channels, Owner};
use crate::pressure::{OVERHEAD, Pressure};
use crate::weight;

/// What may wait for one connection; a peer that lets more pile up is cut off.
const MAX_QUEUED_BYTES: usize = 256 * 1024 * 1024;

/// VMs whose workers' log lines are counted.
const MAX_LOGS: usize = 4096;

/// Functions of one connection that are HTTP requests.
const MAX_REQUESTS: usize = 1024;

/// Carries out a function that is an HTTP request.
pub(crate) type Request = Arc<dyn Fn(Invocation) -> BoxFuture<'static, Answer> + Send + Sync>;

/// What a worker last told of its memory and processor time.
pub(crate) type Gauges = engine_router::Gauges;

/// Everything the connections share.
pub(crate) struct Hub {
    state: Mutex<State>,
    next_conn: AtomicU64,
    pub(crate) channels: Channels,
}

struct State {
    router: Router,
    queues: HashMap<ConnId, Queue, ahash::RandomState>,
    builtins: HashMap<ConnId, Arc<dyn Builtin>, ahash::RandomState>,
    /// Functions of connections that are HTTP requests.
    requests: HashMap<(ConnId, String), Request>,
    /// Calls of our own that wait for their answer.
    waiting: HashMap<Uuid, oneshot::Sender<Result<Option<Payload>, ErrorBody>>>,
    /// Of VMs' workers, so that coming anew does not give them more lines.
    logs: HashMap<String, LogLimit>,
}

struct Queue {
    sender: mpsc::UnboundedSender<Outgoing>,
    /// Of what waits to be sent.
    pressure: Arc<Pressure>,
    /// Of its calls that built-in workers are carrying out.
    in_process: Arc<Pressure>,
    stop: CancellationToken,
    /// Whose channels it makes.
    owner: Owner,
    /// Of lines about it.
    log: LogLimit,
}

/// A message that waits for its socket.
pub(crate) struct Outgoing {
    pub(crate) message: Message,
    /// The worker that the handler of a call is to be told of.
    pub(crate) caller: Option<Uuid>,
    pub(crate) bytes: usize,
}

/// A connection's own end: what is to be sent to it, and when to stop.
pub(crate) struct Seat {
    pub(crate) conn: ConnId,
    pub(crate) outbound: mpsc::UnboundedReceiver<Outgoing>,
    /// Of the queue; the writer takes off what it has sent.
    pub(crate) pressure: Arc<Pressure>,
    pub(crate) stop: CancellationToken,
}

/// Who connects, as far as the socket tells.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    pub(crate) vm_worker: Option<String>,
    pub(crate) isolation: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) session: Session,
}

/// What is to be done when the lock is free again.
enum Delivery {
    Call {
        builtin: Arc<dyn Builtin>,
        conn: ConnId,
        call: Box<InvokeFunction>,
        caller: Option<Uuid>,
        from: Option<Arc<Pressure>>,
    },
    Request {
        request: Request,
        conn: ConnId,
        call: Box<InvokeFunction>,
        caller: Option<Uuid>,
        from: Option<Arc<Pressure>>,
    },
}

impl Hub {
    pub(crate) fn new() -> Arc<Self> {
        let seed = Uuid::new_v4().as_u128() ^ Uuid::new_v4().as_u128().rotate_left(64);
        let state = State {
            router: Router::new(crate::VERSION, seed),
            queues: HashMap::default(),
            builtins: HashMap::default(),
            requests: HashMap::new(),
            waiting: HashMap::new(),
            logs: HashMap::new(),
        };
        Arc::new(Self { state: Mutex::new(state), next_conn: AtomicU64::new(1), channels: Channels::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh_conn(&self) -> ConnId {
        ConnId(self.next_conn.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn open(self: &Arc<Self>, origin: Origin, stop: &CancellationToken) -> Seat {
        let conn = self.fresh_conn();
        let (sender, outbound) = mpsc::unbounded_channel();
        let pressure = Arc::new(Pressure::default());
        let stop = stop.child_token();
        let owner = origin.vm_worker.clone().map_or(Owner::Connection(conn), Owner::Vm);
        let opened = Opened {
            conn,
            worker: Uuid::new_v4(),
            reattach_token: Uuid::new_v4().to_string(),
            vm_worker: origin.vm_worker,
            isolation: origin.isolation,
            address: origin.address,
            session: origin.session,
        };
        let mut state = self.lock();
        let log = match &owner {
            Owner::Vm(name) => state.log_of(name),
            Owner::Connection(_) | Owner::Engine => LogLimit::new(format!("connection {}", conn.0)),
        };
        let queue = Queue {
            sender,
            pressure: Arc::clone(&pressure),
            in_process: Arc::default(),
            stop: stop.clone(),
            owner,
            log,
        };
        state.queues.insert(conn, queue);
        drop(state);
        self.process(Input::Opened(Box::new(opened)));
        Seat { conn, outbound, pressure, stop }
    }

    /// Has a log line written that a message of `conn` has caused, unless it has caused too many.
    pub(crate) fn log(&self, conn: ConnId, line: impl FnOnce()) {
        let limit = self.lock().queues.get(&conn).map(|queue| queue.log.clone());
        if let Some(limit) = limit {
            limit.line(line);
        }
    }

    /// A message of `conn` that arrived at `at_us`. Returned is what its reader has to wait for before it reads on.
    pub(crate) fn receive(self: &Arc<Self>, conn: ConnId, message: Message, at_us: u64) -> Option<Arc<Pressure>> {
        self.process_at(at_us, Input::Received { conn, message })
    }

    pub(crate) fn close(self: &Arc<Self>, conn: ConnId) {
        let queue = {
            let mut state = self.lock();
            state.requests.retain(|(of, _), _| *of != conn);
            state.queues.remove(&conn)
        };
        if let Some(queue) = queue {
            queue.pressure.end();
        }
        self.process(Input::Closed { conn });
    }

    pub(crate) fn tick(self: &Arc<Self>) {
        self.channels.expire();
        self.process(Input::Tick);
    }

    /// Puts a built-in worker where calls find it; bindings that wait for its trigger types are handed over.
    pub(crate) fn install(self: &Arc<Self>, builtin: Arc<dyn Builtin>) -> ConnId {
        let conn = self.fresh_conn();
        let installed = Installed {
            conn,
            worker: Uuid::new_v4(),
            name: builtin.name(),
            functions: builtin.functions(),
            trigger_types: builtin.trigger_types(),
        };
        self.lock().builtins.insert(conn, builtin);
        self.process(Input::Installed(Box::new(installed)));
        conn
    }

    /// Takes a built-in worker away. Its calls in flight are answered as those of any worker that leaves.
    pub(crate) fn uninstall(self: &Arc<Self>, conn: ConnId) {
        self.process(Input::Closed { conn });
        self.lock().builtins.remove(&conn);
    }

    /// From now on, a connection's function is carried out by `request`; it is registered as any other besides.
    pub(crate) fn set_request(&self, conn: ConnId, function_id: &str, request: Option<Request>) {
        let mut state = self.lock();
        let key = (conn, function_id.to_owned());
        let held = state.requests.keys().filter(|(of, _)| *of == conn).count();
        match request {
            Some(_) if held >= MAX_REQUESTS && !state.requests.contains_key(&key) => {
                drop(state);
                self.log(conn, || {
                    warn!(
                        conn = conn.0,
                        function_id, "not carried out: a connection has {MAX_REQUESTS} HTTP functions"
                    );
                });
            }
            Some(request) => drop(state.requests.insert(key, request)),
            None => drop(state.requests.remove(&key)),
        }
    }

    /// Calls a function in the engine's own name. Dropping the future forgets the call.
    pub(crate) async fn call(self: Arc<Self>, invocation: Invocation) -> Answer {
        let answer = Uuid::new_v4();
        let (tell, told) = oneshot::channel();
        self.lock().waiting.insert(answer, tell);
        let waiting = Waiting { hub: Arc::clone(&self), answer };
        let call = InvokeFunction {
            invocation_id: None,
            function_id: invocation.function_id,
            data: Some(invocation.data.into()),
            traceparent: invocation.trace.traceparent,
            baggage: invocation.trace.baggage,
            action: None,
            metadata: None,
        };
        self.process(Input::Call { call: Box::new(call), answer: Some(answer) });
        let answered = told.await;
        drop(waiting);
        let answered = answered.unwrap_or_else(|_| Err(ErrorBody::new("invocation_error", "the call was lost")));
        answered.map(|result| result.map(Payload::into_raw))
    }

    /// Functions that decide on others, and that guests do not offer.
    pub(crate) fn protect(&self, functions: HashSet<String>) {
        self.lock().router.protect(functions);
    }

    pub(crate) fn is_guest(&self, conn: ConnId) -> bool {
        self.lock().queues.get(&conn).is_some_and(|queue| matches!(queue.owner, Owner::Vm(_)))
    }

    pub(crate) fn set_gauges(&self, gauges: Option<Gauges>) {
        self.lock().router.set_gauges(gauges);
    }

    pub(crate) fn knows(&self, function_id: &str) -> bool {
        self.lock().router.knows(function_id)
    }

    pub(crate) fn stats(&self) -> Stats {
        let state = self.lock();
        let counts = state.router.counts().clone();
        let workers_now = state.router.workers() as u64;
        drop(state);
        let durations_us = counts.durations_us();
        let mut by_function: Vec<(String, u64)> = counts.by_function.into_iter().collect();
        by_function.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        Stats {
            calls: counts.calls,
            succeeded: counts.succeeded,
            failed: counts.failed,
            deferred: counts.deferred,
            by_function,
            durations_us,
            workers_connected: counts.workers_connected,
            workers_left: counts.workers_left,
            workers_now,
        }
    }

    fn process(self: &Arc<Self>, input: Input) -> Option<Arc<Pressure>> {
        self.process_at(unix_us(), input)
    }

    /// Advances the router, then does outside of its lock what has to be done there, and what that leads to.
    fn process_at(self: &Arc<Self>, now_us: u64, input: Input) -> Option<Arc<Pressure>> {
        let mut deliveries = VecDeque::new();
        let mut pressure = self.advance(now_us, input, &mut deliveries);
        while let Some(delivery) = deliveries.pop_front() {
            match delivery {
                Delivery::Call { builtin, conn, call, caller, from } => {
                    let high = self.carry_out(&builtin, conn, call, caller, from, &mut deliveries);
                    pressure = pressure.or(high);
                }
                Delivery::Request { request, conn, call, caller, from } => {
                    let (id, bytes) = (call.invocation_id.unwrap_or_default(), weight::of_call(&call) + OVERHEAD);
                    let answer = request(invocation(*call, caller));
                    let high = self.take_on(conn, id, answer, bytes, from, &mut deliveries);
                    pressure = pressure.or(high);
                }
            }
        }
        pressure.filter(|pressure| pressure.is_high())
    }

    /// Has a built-in worker answer a call, here or in a task of its own.
    fn carry_out(
        self: &Arc<Self>,
        builtin: &Arc<dyn Builtin>,
        conn: ConnId,
        call: Box<InvokeFunction>,
        caller: Option<Uuid>,
        from: Option<Arc<Pressure>>,
        deliveries: &mut VecDeque<Delivery>,
    ) -> Option<Arc<Pressure>> {
        let id = call.invocation_id.unwrap_or_default();
        let bytes = weight::of_call(&call) + OVERHEAD;
        let call = Call {
            function_id: call.function_id,
            data: call.data.map(Payload::into_raw),
            trace: Trace { traceparent: call.traceparent, baggage: call.baggage },
            caller,
        };
        match builtin.call(call) {
            Reply::Now(answer) => {
                self.advance(unix_us(), answered(conn, id, answer), deliveries);
                None
            }
            Reply::Later(answer) => self.take_on(conn, id, answer, bytes, from, deliveries),
        }
    }

    /// Has an answer worked out in a task of its own, unless its caller has too many of them.
    fn take_on(
        self: &Arc<Self>,
        conn: ConnId,
        id: Uuid,
        answer: BoxFuture<'static, Answer>,
        bytes: usize,
        from: Option<Arc<Pressure>>,
        deliveries: &mut VecDeque<Delivery>,
    ) -> Option<Arc<Pressure>> {
        if let Some(from) = &from
            && from.add(bytes) > MAX_QUEUED_BYTES
        {
            from.take(bytes);
            let message = "too many calls wait for built-in workers; let some be answered first";
            let refused = Err(ErrorBody::new("limit_reached", message));
            self.advance(unix_us(), answered(conn, id, refused), deliveries);
            return None;
        }
        self.answer_later(conn, id, answer, from.clone().map(|from| (from, bytes)));
        from
    }

    fn answer_later(
        self: &Arc<Self>,
        conn: ConnId,
        id: Uuid,
        answer: BoxFuture<'static, Answer>,
        pressure: Option<(Arc<Pressure>, usize)>,
    ) {
        let hub = Arc::clone(self);
        tokio::spawn(async move {
            let answer = std::panic::AssertUnwindSafe(answer).catch_unwind().await;
            let answer = answer.unwrap_or_else(|_| {
                error!("a built-in worker panicked");
                Err(ErrorBody::new("internal_error", "the built-in worker failed; the engine's log says where"))
            });
            if let Some((pressure, bytes)) = pressure {
                pressure.take(bytes);
            }
            hub.process(answered(conn, id, answer));
        });
    }

    /// One step of the router, and what can be done under its lock. Never waits. Returned is the pressure on who is sent
    /// a call.
    fn advance(&self, now_us: u64, input: Input, deliveries: &mut VecDeque<Delivery>) -> Option<Arc<Pressure>> {
        let from = match &input {
            Input::Received { conn, .. } => Some(*conn),
            _ => None,
        };
        let mut pressure = None;
        let mut state = self.lock();
        // Most inputs lead to no other: nothing is allocated for those.
        let (mut first, mut inputs) = (Some(input), Vec::new());
        while let Some(input) = first.take().or_else(|| inputs.pop()) {
            let mut effects = state.router.step(now_us, input);
            for effect in effects.drain(..) {
                match effect {
                    Effect::Send { conn, message, caller } => {
                        let is_call = matches!(message, Message::InvokeFunction(_));
                        let on = state.send(conn, message, caller);
                        pressure = pressure.or(on.filter(|_| is_call));
                    }
                    Effect::Call { conn, call, caller } => {
                        let Some(builtin) = state.builtins.get(&conn).map(Arc::clone) else { continue };
                        let from = from.and_then(|from| state.queues.get(&from));
                        let from = from.map(|queue| Arc::clone(&queue.in_process));
                        deliveries.push_back(Delivery::Call { builtin, conn, call, caller, from });
                    }
                    Effect::Request { conn, call, caller } => {
                        let from = from.and_then(|from| state.queues.get(&from));
                        let from = from.map(|queue| Arc::clone(&queue.in_process));
                        match state.requests.get(&(conn, call.function_id.clone())).map(Arc::clone) {
                            Some(request) => {
                                deliveries.push_back(Delivery::Request { request, conn, call, caller, from })
                            }
                            None => {
                                let message = "functions with `invocation` need worker `iii-http-functions`";
                                let error = Err(ErrorBody::new("function_not_invokable", message));
                                inputs.push(answered(conn, call.invocation_id.unwrap_or_default(), error));
                            }
                        }
                    }
                    Effect::Bind { conn, trigger, owner, vm } => {
                        let Some(builtin) = state.builtins.get(&conn).map(Arc::clone) else { continue };
                        let config = trigger.config.as_ref().and_then(|config| serde_json::from_str(config.get()).ok());
                        let binding = Binding {
                            id: trigger.id.clone(),
                            trigger_type: trigger.trigger_type.clone(),
                            function_id: trigger.function_id.clone(),
                            config: config.unwrap_or(Value::Null),
                            owner,
                            vm,
                        };
                        if let Err(error) = builtin.bind(binding) {
                            let message = Message::from(TriggerRegistrationResult {
                                id: trigger.id,
                                trigger_type: Some(trigger.trigger_type),
                                function_id: Some(trigger.function_id),
                                error: Some(error),
                            });
                            inputs.push(Input::Received { conn, message });
                        }
                    }
                    Effect::Unbind { conn, trigger_type, id } => {
                        if let Some(builtin) = state.builtins.get(&conn) {
                            builtin.unbind(&trigger_type, &id);
                        }
                    }
                    Effect::Answered { answer, result } => {
                        if let Some(waiting) = state.waiting.remove(&answer) {
                            let _ = waiting.send(result);
                        }
                    }
                    Effect::Close { conn } => state.cut(conn),
                    Effect::CreateChannel { conn, invocation, buffer } => {
                        let Some(queue) = state.queues.get(&conn) else { continue };
                        let refs = self.channels.create(queue.owner.clone(), buffer).and_then(|pair| {
                            raw(&pair).map_err(|error| ErrorBody::new("serialization_error", error.to_string()))
                        });
                        inputs.push(Input::ChannelCreated { conn, invocation, refs });
                    }
                    Effect::Refused { conn, error } => {
                        let Some(queue) = state.queues.get(&conn) else { continue };
                        queue.log.line(|| {
                            warn!(conn = conn.0, code = error.code, reason = error.message, "registration refused");
                        });
                    }
                }
            }
            state.router.reuse(effects);
        }
        pressure
    }
}

/// A call of ours that waits; dropped, it is forgotten.
struct Waiting {
    hub: Arc<Hub>,
    answer: Uuid,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let was_waiting = self.hub.lock().waiting.remove(&self.answer).is_some();
        if was_waiting {
            self.hub.process(Input::Forget { answer: self.answer });
        }
    }
}

impl State {
    fn log_of(&mut self, vm: &str) -> LogLimit {
        if self.logs.len() >= MAX_LOGS {
            self.logs.clear();
        }
        let log = self.logs.entry(vm.to_owned());
        log.or_insert_with(|| LogLimit::new(format!("worker `{vm}`"))).clone()
    }

    fn send(&self, conn: ConnId, message: Message, caller: Option<Uuid>) -> Option<Arc<Pressure>> {
        let queue = self.queues.get(&conn)?;
        let bytes = weight::of_message(&message);
        let queued = queue.pressure.add(bytes);
        if queued > MAX_QUEUED_BYTES + bytes || queue.sender.send(Outgoing { message, caller, bytes }).is_err() {
            // More may be sent to it before it is gone.
            if !queue.stop.is_cancelled() {
                warn!(conn = conn.0, queued, "worker does not read, connection closed");
            }
            self.cut(conn);
        }
        Some(Arc::clone(&queue.pressure))
    }

    fn cut(&self, conn: ConnId) {
        if let Some(queue) = self.queues.get(&conn) {
            debug!(conn = conn.0, "connection closed by the engine");
            queue.stop.cancel();
        }
    }
}

fn answered(conn: ConnId, invocation_id: Uuid, answer: Answer) -> Input {
    let (result, error) = match answer {
        Ok(result) => (result.map(Payload::from), None),
        Err(error) => (None, Some(error)),
    };
    let result =
        InvocationResult { invocation_id, function_id: String::new(), result, error, traceparent: None, baggage: None };
    Input::Received { conn, message: result.into() }
}

fn invocation(call: InvokeFunction, caller: Option<Uuid>) -> Invocation {
    let data = match (call.data, caller) {
        // It was JSON when it arrived: it has a caller put in, or needs none.
        (Some(data), Some(caller)) => with_caller(data, &caller.to_string()).ok(),
        (data, _) => data.map(Payload::into_raw),
    };
    Invocation {
        function_id: call.function_id,
        data: data.unwrap_or_else(|| serde_json::value::RawValue::NULL.to_owned()),
        trace: Trace { traceparent: call.traceparent, baggage: call.baggage },
    }
}

/// Microseconds since 1970.
pub(crate) fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_vms_worker_that_comes_anew_gets_no_more_lines_in_the_log() {
        let hub = Hub::new();
        let flood = |vm_worker: Option<&str>| {
            let origin = Origin { vm_worker: vm_worker.map(ToOwned::to_owned), ..Origin::default() };
            let mut lines = 0;
            for _ in 0..5 {
                let conn = hub.open(origin.clone(), &CancellationToken::new()).conn;
                (0..20).for_each(|_| hub.log(conn, || lines += 1));
                hub.close(conn);
            }
            lines
        };
        assert_eq!(flood(Some("one")), 10);
        assert_eq!(flood(Some("other")), 10);
        assert_eq!(flood(None), 50, "each connection has its own");
    }
}

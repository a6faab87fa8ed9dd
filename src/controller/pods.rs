//! Pods: one watch for each namespace in which a policy selects pods or uses their addresses. Pods are reduced to the needed
//! fields and indexed. Selectors are matched here, so that more policies do not need more connections.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{
    Api, Client, ResourceExt as _,
    core::{Selector, SelectorExt as _},
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tracing::Instrument as _;

use super::{Error, PolicyRef, known_pod::KnownPod};

/// Timeout of the first list, and the pause before a watch restarts.
const FIRST_LIST: Duration = Duration::from_secs(10);

/// State of the watch of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PodState {
    /// The first list is not complete yet.
    Begun,
    /// The pods are known.
    Listed,
    /// The API server forbids the watch. A list from before a right was removed is not used, because it may be outdated.
    Forbidden,
}

/// Interest of a policy in the pods of its namespace.
#[derive(Clone, Debug)]
pub enum Interest {
    /// The selected pods and their changes.
    Selected(Box<Selector>),
    /// Lookups of pods by address.
    Addresses,
}

impl Interest {
    /// Returns an interest in the selected pods.
    ///
    /// # Errors
    /// [`Error::Selector`] if the selector is not valid.
    pub fn of(selector: &LabelSelector) -> Result<Self, Error> {
        Ok(Self::Selected(Box::new(Selector::try_from(selector.clone())?)))
    }
}

/// Pods of a namespace. A name is stored once.
#[derive(Default)]
struct Index {
    pods: HashMap<Arc<str>, Arc<KnownPod>>,
    by_label: HashMap<(String, String), BTreeSet<Arc<str>>>,
    by_ip: HashMap<IpAddr, BTreeSet<Arc<str>>>,
    /// By host address and `hostPort`.
    by_host: HashMap<(IpAddr, u16), BTreeSet<Arc<str>>>,
}

impl Index {
    /// Adds or replaces a pod. Returns the replaced pod.
    fn put(&mut self, pod: Arc<KnownPod>) -> Option<Arc<KnownPod>> {
        let before = self.take(&pod.name);
        let name = pod.name.clone();
        for (key, value) in &pod.labels {
            self.by_label.entry((key.clone(), value.clone())).or_default().insert(name.clone());
        }
        for ip in &pod.addresses {
            self.by_ip.entry(*ip).or_default().insert(name.clone());
        }
        for published in &pod.published {
            self.by_host.entry(*published).or_default().insert(name.clone());
        }
        self.pods.insert(name, pod);
        before
    }

    fn take(&mut self, name: &str) -> Option<Arc<KnownPod>> {
        let pod = self.pods.remove(name)?;
        for (key, value) in &pod.labels {
            drop_name(&mut self.by_label, &(key.clone(), value.clone()), name);
        }
        for ip in &pod.addresses {
            drop_name(&mut self.by_ip, ip, name);
        }
        for published in &pod.published {
            drop_name(&mut self.by_host, published, name);
        }
        Some(pod)
    }

    fn these(&self, names: Option<&BTreeSet<Arc<str>>>) -> Vec<Arc<KnownPod>> {
        names.into_iter().flatten().filter_map(|name| self.pods.get(name)).cloned().collect()
    }

    /// Returns the selected pods, by name. It matches only the pods with the rarest of the selector's labels.
    fn select(&self, selector: &Selector, wanted: Option<&BTreeMap<String, String>>) -> Vec<Arc<KnownPod>> {
        let sets = wanted.into_iter().flatten().map(|(key, value)| self.by_label.get(&(key.clone(), value.clone())));
        let rarest = sets.min_by_key(|set| set.map_or(0, BTreeSet::len));
        let matches = |pod: &Arc<KnownPod>| selector.matches(&pod.labels);
        let mut pods: Vec<_> = rarest.map_or_else(|| self.pods.values().cloned().collect(), |names| self.these(names));
        pods.retain(matches);
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        pods
    }
}

fn drop_name<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<Arc<str>>>, key: &K, name: &str) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

struct Watch {
    index: Arc<Mutex<Index>>,
    standing: watch::Receiver<PodState>,
    policies: Arc<Mutex<HashMap<PolicyRef, Interest>>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches by namespace.
pub struct Pods {
    client: Client,
    nudges: mpsc::UnboundedSender<PolicyRef>,
    watches: Mutex<HashMap<String, Watch>>,
}

impl Pods {
    /// Returns an empty set of watches. Policies that need a pass are sent to `nudges`.
    #[must_use]
    pub fn new(client: Client, nudges: mpsc::UnboundedSender<PolicyRef>) -> Self {
        Self { client, nudges, watches: Mutex::default() }
    }

    /// Returns the selected pods, by name.
    pub async fn list(&self, namespace: &str, selector: &LabelSelector) -> Result<Vec<Arc<KnownPod>>, Error> {
        let matcher = Selector::try_from(selector.clone())?;
        self.listed(namespace, |index| index.select(&matcher, selector.match_labels.as_ref())).await
    }

    /// Returns the pods with this address.
    pub async fn at(&self, namespace: &str, ip: IpAddr) -> Result<Vec<Arc<KnownPod>>, Error> {
        self.listed(namespace, |index| index.these(index.by_ip.get(&ip))).await
    }

    /// Returns the pods that publish this port on this host address.
    pub async fn publishing(&self, namespace: &str, ip: IpAddr, port: u16) -> Result<Vec<Arc<KnownPod>>, Error> {
        self.listed(namespace, |index| index.these(index.by_host.get(&(ip, port)))).await
    }

    /// Returns the pod with this name.
    pub async fn named(&self, namespace: &str, name: &str) -> Result<Option<Arc<KnownPod>>, Error> {
        self.listed(namespace, |index| index.pods.get(name).cloned()).await
    }

    /// Looks something up after the first list is complete.
    async fn listed<T>(&self, namespace: &str, find: impl FnOnce(&Index) -> T) -> Result<T, Error> {
        let (index, mut standing) = {
            let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
            let watch = watches.entry(namespace.to_owned()).or_insert_with(|| self.watch(namespace));
            (watch.index.clone(), watch.standing.clone())
        };
        let known = tokio::time::timeout(FIRST_LIST, standing.wait_for(|standing| *standing != PodState::Begun)).await;
        match known.map(|known| known.map(|standing| *standing)) {
            Ok(Ok(PodState::Forbidden)) => Err(Error::PodsForbidden),
            Ok(Ok(_)) => Ok(find(&index.lock().unwrap_or_else(PoisonError::into_inner))),
            _ => Err(Error::Pods(namespace.to_owned())),
        }
    }

    /// Sets the interest of a policy. A watch that no policy needs ends.
    pub fn subscribe(&self, policy: &PolicyRef, interest: Option<Interest>) {
        let own = policy.namespace.as_deref().unwrap_or_default();
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interest) = interest {
            let watch = watches.entry(own.to_owned()).or_insert_with(|| self.watch(own));
            watch.policies.lock().unwrap_or_else(PoisonError::into_inner).insert(policy.clone(), interest);
        } else if let Some(watch) = watches.get(own) {
            let mut policies = watch.policies.lock().unwrap_or_else(PoisonError::into_inner);
            policies.remove(policy);
            let unused = policies.is_empty();
            drop(policies);
            if unused {
                watches.remove(own);
            }
        }
    }

    fn watch(&self, namespace: &str) -> Watch {
        let index = Arc::<Mutex<Index>>::default();
        let policies = Arc::<Mutex<HashMap<PolicyRef, Interest>>>::default();
        let (standing, seen) = watch::channel(PodState::Begun);
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let follower = Follower { index: index.clone(), policies: policies.clone(), standing, nudges: self.nudges.clone() };
        let span = tracing::error_span!("watch", namespace);
        let task = tokio::spawn(async move {
            loop {
                let events = watcher(api.clone(), watcher::Config::default()).default_backoff();
                let mut relisted = BTreeSet::new();
                let following = events.for_each(|event| {
                    follower.follow(event, &mut relisted);
                    std::future::ready(())
                });
                // A panic on one pod does not end the watch.
                if std::panic::AssertUnwindSafe(following).catch_unwind().instrument(span.clone()).await.is_err() {
                    span.in_scope(|| tracing::error!("the watch of pods panicked; restarting it"));
                }
                tokio::time::sleep(FIRST_LIST).await;
            }
        });
        Watch { index, standing: seen, policies, task }
    }
}

/// Handles the events of the watch of one namespace.
struct Follower {
    index: Arc<Mutex<Index>>,
    policies: Arc<Mutex<HashMap<PolicyRef, Interest>>>,
    standing: watch::Sender<PodState>,
    nudges: mpsc::UnboundedSender<PolicyRef>,
}

impl Follower {
    fn follow(&self, event: watcher::Result<watcher::Event<Pod>>, relisted: &mut BTreeSet<String>) {
        match event {
            Ok(watcher::Event::Init) => relisted.clear(),
            Ok(watcher::Event::InitApply(pod)) => {
                relisted.insert(pod.name_any());
                self.put(&pod);
            }
            Ok(watcher::Event::InitDone) => {
                let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
                let gone: Vec<_> = index.pods.keys().filter(|name| !relisted.contains(&***name)).cloned().collect();
                let gone: Vec<_> = gone.iter().filter_map(|name| index.take(name)).collect();
                drop(index);
                relisted.clear();
                if self.standing.send_replace(PodState::Listed) == PodState::Listed {
                    for pod in &gone {
                        self.enqueue(&[pod]);
                    }
                } else {
                    self.nudge_all();
                }
            }
            Ok(watcher::Event::Apply(pod)) => self.put(&pod),
            Ok(watcher::Event::Delete(pod)) => {
                let before = self.index.lock().unwrap_or_else(PoisonError::into_inner).take(&pod.name_any());
                self.enqueue(&[&before.unwrap_or_else(|| Arc::new(KnownPod::of(&pod)))]);
            }
            Err(error) => {
                if is_forbidden(&error) {
                    if self.standing.send_replace(PodState::Forbidden) != PodState::Forbidden {
                        self.nudge_all();
                    }
                } else {
                    tracing::debug!(%error, "the watch of pods was interrupted; retrying");
                }
            }
        }
    }

    fn put(&self, pod: &Pod) {
        let now = Arc::new(KnownPod::of(pod));
        let before = self.index.lock().unwrap_or_else(PoisonError::into_inner).put(now.clone());
        // All policies wait until the first list is complete.
        if *self.standing.borrow() != PodState::Listed {
            return;
        }
        match before {
            Some(before) if before == now => {}
            Some(before) => self.enqueue(&[&before, &now]),
            None => self.enqueue(&[&now]),
        }
    }

    /// Enqueues the policies that select one of these pods, by its old or new labels.
    fn enqueue(&self, pods: &[&Arc<KnownPod>]) {
        let policies = self.policies.lock().unwrap_or_else(PoisonError::into_inner);
        for (policy, interest) in &*policies {
            if let Interest::Selected(selector) = interest
                && pods.iter().any(|pod| selector.matches(&pod.labels))
            {
                // This fails only after the controller has ended.
                let _ = self.nudges.send(policy.clone());
            }
        }
    }

    fn nudge_all(&self) {
        for policy in self.policies.lock().unwrap_or_else(PoisonError::into_inner).keys() {
            let _ = self.nudges.send(policy.clone());
        }
    }
}

/// Reports whether a watch failed because a right is missing. The watch retries.
pub fn is_forbidden(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error)) =
        error
    else {
        return false;
    };
    matches!(error, kube::Error::Api(status) if status.is_forbidden())
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn known(pod: serde_json::Value) -> Arc<KnownPod> {
        Arc::new(KnownPod::of(&from_value(pod).expect("a pod")))
    }

    fn pod(name: &str, app: &str, ip: &str) -> Arc<KnownPod> {
        known(json!({"metadata": {"name": name, "uid": name, "labels": {"app": app, "tier": "edge"}}, "status": {"podIP": ip}}))
    }

    fn names(index: &Index, selector: &serde_json::Value) -> Vec<String> {
        let selector: LabelSelector = from_value(selector.clone()).expect("a selector");
        let Ok(Interest::Selected(matcher)) = Interest::of(&selector) else { panic!("a selector") };
        index.select(&matcher, selector.match_labels.as_ref()).iter().map(|pod| pod.name.to_string()).collect()
    }

    #[test]
    fn a_selector_finds_the_pods_that_it_selects() {
        let mut index = Index::default();
        for (name, app) in [("a", "gateway"), ("b", "gateway"), ("c", "store")] {
            index.put(pod(name, app, "10.0.0.1"));
        }
        assert_eq!(names(&index, &json!({"matchLabels": {"app": "gateway", "tier": "edge"}})), ["a", "b"]);
        assert_eq!(names(&index, &json!({"matchLabels": {"app": "other"}})), Vec::<String>::new());
        let not_gateway = json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["gateway"]}]});
        assert_eq!(names(&index, &not_gateway), ["c"]);
        assert_eq!(names(&index, &json!({})), ["a", "b", "c"]);
    }

    #[test]
    fn a_pod_that_changes_its_labels_or_goes_is_found_no_more() {
        let mut index = Index::default();
        index.put(pod("a", "gateway", "10.0.0.1"));
        index.put(pod("a", "store", "10.0.0.2"));
        assert_eq!(names(&index, &json!({"matchLabels": {"app": "gateway"}})), Vec::<String>::new());
        assert_eq!(names(&index, &json!({"matchLabels": {"app": "store"}})), ["a"]);
        assert_eq!(index.by_ip.keys().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.2"]);
        index.take("a");
        assert!(index.by_label.is_empty() && index.by_ip.is_empty() && index.by_host.is_empty() && index.pods.is_empty());
    }

    #[test]
    fn a_port_that_a_host_publishes_is_its_pods() {
        let published = known(json!({
            "metadata": {"name": "t0", "annotations": {"big": "x"}},
            "spec": {"containers": [
                {"name": "a", "image": "a", "ports": [{"containerPort": 51081, "hostPort": 51081}, {"containerPort": 9}]}, {"name": "b", "image": "b"},
            ]},
            "status": {"podIP": "10.0.0.1", "hostIP": "192.0.2.7", "hostIPs": [{"ip": "192.0.2.7"}, {"ip": "fd00::7"}]},
        }));
        let mut index = Index::default();
        index.put(published);
        let mut at: Vec<_> = index.by_host.keys().map(|(ip, port)| format!("{ip} {port}")).collect();
        at.sort();
        assert_eq!(at, ["192.0.2.7 51081", "fd00::7 51081"]);
        index.take("t0");
        assert!(index.by_host.is_empty());
    }
}

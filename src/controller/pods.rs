//! Pods by selector: one watch for each selector in use, trimmed to what is needed, and a nudge to its policies on change.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, future::ready};
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    Api, Client, ResourceExt as _,
    core::Selector,
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{Error, PolicyRef};
use crate::api::CONFIG_HASH;

/// How long the first list may take.
const FIRST_LIST: Duration = Duration::from_secs(10);

/// Namespace and selector.
type Key = (String, String);

struct Watch {
    store: reflector::Store<Pod>,
    /// Whether the API server last refused.
    forbidden: watch::Receiver<bool>,
    policies: Arc<Mutex<Vec<PolicyRef>>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The watches.
pub struct Pods {
    client: Client,
    nudges: mpsc::UnboundedSender<PolicyRef>,
    watches: Mutex<HashMap<Key, Watch>>,
}

impl Pods {
    /// None yet. Policies to look at again go into `nudges`.
    #[must_use]
    pub fn new(client: Client, nudges: mpsc::UnboundedSender<PolicyRef>) -> Self {
        Self { client, nudges, watches: Mutex::default() }
    }

    /// The pods that a selector selects now.
    pub async fn list(&self, namespace: &str, selector: &LabelSelector) -> Result<Vec<Arc<Pod>>, Error> {
        let key = key(namespace, selector)?;
        let (store, mut forbidden) = {
            let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
            let watch = watches.entry(key.clone()).or_insert_with(|| self.watch(&key));
            (watch.store.clone(), watch.forbidden.clone())
        };
        // What was listed before a right was taken away is not what there is.
        tokio::select! {
            biased;
            Ok(_) = forbidden.wait_for(|forbidden| *forbidden) => Err(Error::PodsForbidden),
            ready = tokio::time::timeout(FIRST_LIST, store.wait_until_ready()) => match ready {
                Ok(Ok(())) => Ok(store.state()),
                _ => Err(Error::Pods(key.1)),
            },
        }
    }

    /// Which selector a policy uses from now on; a watch that nobody uses ends.
    pub fn subscribe(&self, policy: &PolicyRef, selector: Option<(&str, &LabelSelector)>) {
        let wanted = selector.and_then(|(namespace, selector)| key(namespace, selector).ok());
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = &wanted {
            watches.entry(key.clone()).or_insert_with(|| self.watch(key));
        }
        watches.retain(|key, watch| {
            let mut policies = watch.policies.lock().unwrap_or_else(PoisonError::into_inner);
            policies.retain(|other| other != policy);
            if Some(key) == wanted.as_ref() {
                policies.push(policy.clone());
            }
            !policies.is_empty()
        });
    }

    fn watch(&self, (namespace, selector): &Key) -> Watch {
        let (store, writer) = reflector::store();
        let policies = Arc::new(Mutex::new(Vec::<PolicyRef>::new()));
        let (tell, nudges) = (policies.clone(), self.nudges.clone());
        let (refused, forbidden) = watch::channel(false);
        let mut last = HashMap::new();
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let events =
            watcher(api, watcher::Config::default().labels(selector)).default_backoff().modify(trim).reflect(writer).for_each(
                move |event| {
                    let changed = match event {
                        Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => {
                            let place = (
                                pod.uid(),
                                pod.status.as_ref().map(|s| (s.pod_ip.clone(), s.phase.clone(), s.container_statuses.clone())),
                                pod.metadata.deletion_timestamp.is_some(),
                            );
                            last.insert(pod.name_any(), place.clone()) != Some(place)
                        }
                        Ok(watcher::Event::Delete(pod)) => {
                            last.remove(&pod.name_any());
                            true
                        }
                        Ok(watcher::Event::InitDone) => {
                            refused.send_replace(false);
                            true
                        }
                        Ok(watcher::Event::Init) => false,
                        Err(error) => {
                            let is_refused = is_forbidden(&error);
                            if !is_refused {
                                tracing::debug!(%error, "the watch of pods was interrupted and goes on");
                            }
                            is_refused && !refused.send_replace(true)
                        }
                    };
                    if changed {
                        for policy in tell.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                            // The receiver ends with the controller.
                            let _ = nudges.send(policy.clone());
                        }
                    }
                    ready(())
                },
            );
        Watch { store, forbidden, policies, task: tokio::spawn(events) }
    }
}

/// Whether a watch is refused for want of a right: it goes on asking.
pub fn is_forbidden(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error)) =
        error
    else {
        return false;
    };
    matches!(error, kube::Error::Api(status) if status.is_forbidden())
}

fn key(namespace: &str, selector: &LabelSelector) -> Result<Key, Error> {
    let selector = Selector::try_from(selector.clone()).map_err(|_| Error::Selector)?;
    Ok((namespace.to_owned(), selector.to_string()))
}

/// Keeps what a place is made of: a pod's spec is most of its size.
fn trim(pod: &mut Pod) {
    pod.managed_fields_mut().clear();
    pod.annotations_mut().retain(|name, _| name == CONFIG_HASH);
    pod.spec = None;
    if let Some(status) = &mut pod.status {
        status.conditions = None;
        for container in status.container_statuses.iter_mut().flatten() {
            *container = ContainerStatus {
                state: container.state.take(),
                name: std::mem::take(&mut container.name),
                ..ContainerStatus::default()
            };
        }
        status.init_container_statuses = None;
    }
}

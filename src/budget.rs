//! Bytes that tenants may hold in memory: a share for each tenant, part of which is always guaranteed.
//!
//! A caller waits for bytes only while it holds none of the same budget, so that two callers never wait for each other.
//! A caller that needs more than is free gives everything back and waits for the whole amount.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one permit.
const GRAIN: usize = 1024;

const fn permits(bytes: usize) -> usize {
    bytes.div_ceil(GRAIN)
}

fn many(bytes: usize) -> u32 {
    u32::try_from(permits(bytes)).unwrap_or(u32::MAX)
}

/// The bytes of all tenants.
pub struct Budget {
    floor: usize,
    share: usize,
    total: Arc<Semaphore>,
    tenants: Mutex<HashMap<String, Weak<Tenant>>>,
}

impl Budget {
    /// `total` bytes for all tenants together, of which each may hold a quarter. In addition, each tenant has `floor`
    /// bytes in any case.
    #[must_use]
    pub fn new(total: usize, floor: usize) -> Self {
        Self { floor, share: total / 4, total: Arc::new(Semaphore::new(permits(total))), tenants: Mutex::default() }
    }

    /// One tenant's share, the same for all callers.
    pub fn tenant(&self, name: &str) -> Arc<Tenant> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = tenants.get(name).and_then(Weak::upgrade) {
            return known;
        }
        tenants.retain(|_, tenant| tenant.strong_count() > 0);
        let tenant = Arc::new(Tenant {
            share_bytes: self.share,
            total: self.total.clone(),
            share: Arc::new(Semaphore::new(permits(self.share))),
            floor: Arc::new(Semaphore::new(permits(self.floor))),
        });
        tenants.insert(name.to_owned(), Arc::downgrade(&tenant));
        tenant
    }
}

/// One tenant's share.
pub struct Tenant {
    share_bytes: usize,
    total: Arc<Semaphore>,
    share: Arc<Semaphore>,
    floor: Arc<Semaphore>,
}

impl Tenant {
    /// A reservation of no bytes, to grow.
    #[must_use]
    pub fn nothing(self: &Arc<Self>) -> Reservation {
        Reservation { tenant: self.clone(), floor: None, share: None }
    }

    /// Waits for `bytes`, or for the tenant's share if that is less. The caller must not hold a reservation of the same
    /// budget.
    pub async fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let wanted = many(bytes.min(self.share_bytes));
        let mut held = self.nothing();
        if let Ok(permit) = self.floor.clone().try_acquire_many_owned(wanted) {
            held.floor = Some(permit);
            return Some(held);
        }
        let share = self.share.clone().acquire_many_owned(wanted).await.ok()?;
        let total = self.total.clone().acquire_many_owned(wanted).await.ok()?;
        held.share = Some((share, total));
        Some(held)
    }
}

/// Reserved bytes. Dropping the reservation gives them back.
pub struct Reservation {
    tenant: Arc<Tenant>,
    floor: Option<OwnedSemaphorePermit>,
    share: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Reservation {
    /// The size of the reservation in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let floor = self.floor.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        (floor + self.share.as_ref().map_or(0, |(share, _)| share.num_permits())) * GRAIN
    }

    /// Grows to `bytes` in total, without waiting. Returns false if they are not free.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let Some(more) = bytes.checked_sub(self.bytes()).filter(|more| *more > 0).map(many) else { return true };
        if let Ok(permit) = self.tenant.floor.clone().try_acquire_many_owned(more) {
            match &mut self.floor {
                Some(held) => held.merge(permit),
                held => *held = Some(permit),
            }
            return true;
        }
        let Ok(share) = self.tenant.share.clone().try_acquire_many_owned(more) else { return false };
        let Ok(total) = self.tenant.total.clone().try_acquire_many_owned(more) else { return false };
        match &mut self.share {
            Some((held, of_total)) => {
                held.merge(share);
                of_total.merge(total);
            }
            held => *held = Some((share, total)),
        }
        true
    }

    /// Keeps `bytes` and gives the rest back: the shared part first, the tenant's guaranteed part last.
    pub fn shrink(&mut self, bytes: usize) {
        let mut excess = self.bytes().saturating_sub(bytes) / GRAIN;
        if let Some((share, total)) = &mut self.share {
            let back = excess.min(share.num_permits());
            drop((share.split(back), total.split(back)));
            excess -= back;
        }
        if let Some(floor) = &mut self.floor {
            drop(floor.split(excess.min(floor.num_permits())));
        }
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reservation({} bytes)", self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FLOOR: usize = 512 * 1024;
    const TOTAL: usize = 32 * 1024 * 1024;
    const SHARE: usize = TOTAL / 4;

    async fn now(tenant: &Arc<Tenant>, bytes: usize) -> Option<Reservation> {
        tokio::time::timeout(Duration::from_millis(20), tenant.reserve(bytes)).await.ok().flatten()
    }

    #[tokio::test]
    async fn one_tenant_takes_a_quarter_and_no_more() {
        let budget = Budget::new(TOTAL, FLOOR);
        let tenant = budget.tenant("shop");
        let floor = now(&tenant, FLOOR).await.expect("the guaranteed part");
        let share = now(&tenant, SHARE).await.expect("the share");
        assert!(now(&tenant, GRAIN).await.is_none());
        assert!(now(&budget.tenant("shop"), GRAIN).await.is_none(), "a second provider of a tenant has the same share");
        drop(share);
        assert!(now(&tenant, SHARE).await.is_some());
        drop(floor);
    }

    #[tokio::test]
    async fn a_tenant_has_its_guaranteed_part_whatever_the_others_hold() {
        let budget = Budget::new(TOTAL, FLOOR);
        let mut held = Vec::new();
        for n in 0..15 {
            let tenant = budget.tenant(&format!("hostile-{n}"));
            held.extend(now(&tenant, FLOOR).await);
            held.extend(now(&tenant, SHARE).await);
        }
        let innocent = budget.tenant("innocent");
        let mut own = now(&innocent, 64 * 1024).await.expect("the guaranteed part");
        assert!(own.try_grow(FLOOR));
        assert!(!own.try_grow(FLOOR + GRAIN), "all of the rest is in use");
        assert_eq!(own.bytes(), FLOOR);
    }

    #[tokio::test]
    async fn what_is_given_back_is_free_again() {
        let budget = Budget::new(TOTAL, FLOOR);
        let tenant = budget.tenant("shop");
        let mut held = now(&tenant, 64 * 1024).await.expect("memory");
        assert!(held.try_grow(SHARE));
        held.shrink(10_000);
        assert_eq!(held.bytes(), 10 * GRAIN);
        let other = now(&tenant, SHARE - GRAIN).await;
        assert!(other.is_some());
        drop((held, other));
        assert_eq!(tenant.share.available_permits(), permits(SHARE));
        assert_eq!(tenant.floor.available_permits(), permits(FLOOR));
        assert_eq!(budget.total.available_permits(), permits(TOTAL));
    }
}

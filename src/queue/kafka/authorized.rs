//! Which operations the brokers let this user do on a topic or a group (KIP-430). A question without a trace, unlike writing to see whether one may.
//!
//! rust-rdkafka has no call for it, librdkafka has (`rd_kafka_DescribeTopics`, `rd_kafka_DescribeConsumerGroups`, rdkafka.h, since 2.3).

use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::ptr;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::bindings as sys;
use rdkafka::client::Client;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};

/// What may be done, by Kafka's names; `None` where the brokers do not say.
pub(super) type Operations = Option<Vec<Operation>>;

/// An operation that Millstream needs somewhere (`org.apache.kafka.common.acl.AclOperation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Delete,
    Describe,
    DescribeConfigs,
}

impl Operation {
    /// By its number in the protocol. Others are none of ours.
    fn of(number: u32) -> Option<Self> {
        match number {
            3 => Some(Self::Read),
            4 => Some(Self::Write),
            6 => Some(Self::Delete),
            8 => Some(Self::Describe),
            10 => Some(Self::DescribeConfigs),
            _ => None,
        }
    }
}

/// What is asked about.
#[derive(Clone, Debug)]
pub(super) enum Resource {
    Topic(String),
    /// Need not exist.
    Group(String),
}

impl Resource {
    fn name(&self) -> &str {
        match self {
            Self::Topic(name) | Self::Group(name) => name,
        }
    }

    /// What brokers say to an operation that is not allowed.
    pub(super) fn denied(&self) -> Code {
        match self {
            Self::Topic(_) => Code::TopicAuthorizationFailed,
            Self::Group(_) => Code::GroupAuthorizationFailed,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(name) => write!(f, "topic '{name}'"),
            Self::Group(name) => write!(f, "group '{name}'"),
        }
    }
}

/// Asks the brokers once. Blocking, for as long as `within`.
///
/// # Errors
/// What Kafka answered: without Describe it tells nothing else of a topic or group.
pub(super) fn authorized<C: ClientContext>(client: &Client<C>, of: &Resource, within: Duration) -> KafkaResult<Operations> {
    // No name of ours holds a NUL.
    let name = CString::new(of.name()).map_err(KafkaError::Nul)?;
    let wait = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: every handle is made, used and destroyed in here by the calls that rdkafka.h names for it; what an answer points to is read
    // before its event is destroyed; the client outlives the call. A null answer means that none came in time.
    #[expect(unsafe_code, reason = "rust-rdkafka does not wrap these two calls")]
    let answer = unsafe {
        let handle = client.native_ptr();
        let queue = sys::rd_kafka_queue_new(handle);
        let event = ask(handle, queue, of, &name, wait);
        let answer = if event.is_null() { None } else { Some(read(event, of)) };
        if !event.is_null() {
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_queue_destroy(queue);
        answer
    };
    answer.unwrap_or(Err(Code::OperationTimedOut)).map_err(KafkaError::AdminOp)
}

/// Sends the question and waits for the event with its answer.
///
/// # Safety
/// `handle` and `queue` are alive.
#[expect(unsafe_code, reason = "librdkafka's interface")]
unsafe fn ask(
    handle: *mut sys::rd_kafka_t,
    queue: *mut sys::rd_kafka_queue_t,
    of: &Resource,
    name: &CStr,
    wait: i32,
) -> *mut sys::rd_kafka_event_t {
    use sys::rd_kafka_admin_op_t::{RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS, RD_KAFKA_ADMIN_OP_DESCRIBETOPICS};
    let call = match of {
        Resource::Topic(_) => RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        Resource::Group(_) => RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS,
    };
    let mut names: [*const c_char; 1] = [name.as_ptr()];
    // SAFETY: `names` and what it points to outlive the calls, which copy them; options and collection are destroyed once the question is sent.
    unsafe {
        let options = sys::rd_kafka_AdminOptions_new(handle, call);
        sys::rd_kafka_AdminOptions_set_request_timeout(options, wait, ptr::null_mut(), 0);
        let refused = sys::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
        if !refused.is_null() {
            sys::rd_kafka_error_destroy(refused);
        }
        match of {
            Resource::Topic(_) => {
                let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
                sys::rd_kafka_DescribeTopics(handle, topics, options, queue);
                sys::rd_kafka_TopicCollection_destroy(topics);
            }
            Resource::Group(_) => {
                sys::rd_kafka_DescribeConsumerGroups(handle, names.as_mut_ptr(), names.len(), options, queue);
            }
        }
        sys::rd_kafka_AdminOptions_destroy(options);
        sys::rd_kafka_queue_poll(queue, wait)
    }
}

/// The one topic or group of an answer.
///
/// # Safety
/// `event` is alive and an answer to [`ask`] for the same kind of resource.
#[expect(unsafe_code, reason = "librdkafka's interface")]
unsafe fn read(event: *mut sys::rd_kafka_event_t, of: &Resource) -> std::result::Result<Operations, Code> {
    let no_error = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
    let (mut count, mut length) = (0, 0);
    // SAFETY: what the event points to lives as long as it; counts and lengths are librdkafka's own of the arrays beside them.
    unsafe {
        let failed = sys::rd_kafka_event_error(event);
        if failed != no_error {
            return Err(failed.into());
        }
        let (error, operations) = match of {
            Resource::Topic(_) => {
                let answer = sys::rd_kafka_event_DescribeTopics_result(event);
                if answer.is_null() {
                    return Ok(None);
                }
                let all = sys::rd_kafka_DescribeTopics_result_topics(answer, &raw mut count);
                if all.is_null() || count == 0 {
                    return Ok(None);
                }
                let one = *all;
                (
                    sys::rd_kafka_TopicDescription_error(one),
                    sys::rd_kafka_TopicDescription_authorized_operations(one, &raw mut length),
                )
            }
            Resource::Group(_) => {
                let answer = sys::rd_kafka_event_DescribeConsumerGroups_result(event);
                if answer.is_null() {
                    return Ok(None);
                }
                let all = sys::rd_kafka_DescribeConsumerGroups_result_groups(answer, &raw mut count);
                if all.is_null() || count == 0 {
                    return Ok(None);
                }
                let one = *all;
                (
                    sys::rd_kafka_ConsumerGroupDescription_error(one),
                    sys::rd_kafka_ConsumerGroupDescription_authorized_operations(one, &raw mut length),
                )
            }
        };
        let code = if error.is_null() { no_error } else { sys::rd_kafka_error_code(error) };
        if code != no_error {
            return Err(code.into());
        }
        if operations.is_null() {
            return Ok(None);
        }
        // As numbers: a later librdkafka may know operations that the binding's enumeration does not.
        let numbers = std::slice::from_raw_parts(operations.cast::<u32>(), length);
        Ok(Some(numbers.iter().filter_map(|number| Operation::of(*number)).collect()))
    }
}

"""Which pod has which device, and what the pods of this node are called: the kubelet's PodResources API over
its unix socket, the node's log directories, and, where it is asked for, the kubelet's list of pods."""

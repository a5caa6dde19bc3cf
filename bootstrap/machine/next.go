package machine

// States returns every state, in the order of a life.
func States() []State {
	return []State{
		Discovered, Approved, Armed, Installing, Installed, Enrolled, Member, Ready,
		Quarantined, Failed, Retired,
	}
}

// Events returns every event.
func Events() []Event {
	return []Event{
		Listed, Arm, ArmReinstall, Disarm, InstallBegun, InstallDone, NodeSeen,
		EtcdJoined, NodeReady, NodeNotReady, KeyConflict, ConflictResolved, Fail, Retire, Replace,
	}
}

// Next is the one transition function. It returns the state after an event,
// which may be the same state, or a *RefusedError and the unchanged state.
// testdata/transitions.txt shows all of it.
//
// Two rules shape it. What a machine merely reports never takes an operator's
// arming back, so observations leave Armed alone. And whoever can forge a MAC
// address must not be able to stop a running machine, so a second key disturbs
// only a machine that is idle; for the others it is an alarm.
func Next(s State, e Event) (State, error) {
	if hint := never(s, e); hint != "" {
		return s, &RefusedError{State: s, Event: e, Hint: hint}
	}
	to, hint := move(s, e)
	if hint != "" {
		return s, &RefusedError{State: s, Event: e, Hint: hint}
	}
	return to, nil
}

// never holds the states that refuse (nearly) everything.
func never(s State, e Event) string {
	switch s {
	case Discovered:
		if e != Listed && e != Retire && e != KeyConflict && e != ConflictResolved {
			return "add it to cluster.yaml first"
		}
	case Approved, Armed, Installing, Installed, Enrolled, Member, Ready, Quarantined, Failed:
	case Retired:
		if e != Retire && e != Replace {
			return "it was retired for good; imagectl machines replace gives its name to other hardware"
		}
	default:
		return "this state does not exist"
	}
	return ""
}

// move is the table: by event, then by state. A hint refuses.
func move(s State, e Event) (to State, hint string) {
	switch e {
	case Listed:
		if s == Discovered {
			return Approved, ""
		}
		return s, ""

	case Arm:
		switch s {
		case Approved, Armed, Failed:
			return Armed, ""
		case Installing:
			return s, "it is writing its disk; wait for it, or disarm it first"
		case Quarantined:
			return s, "two keys claim it; approve or reject the pending one first"
		default:
			return s, "it is installed already; say --reinstall to wipe it"
		}
	case ArmReinstall:
		switch s {
		case Installing:
			return s, "it is writing its disk; wait for it, or disarm it first"
		case Quarantined:
			return s, "two keys claim it; approve or reject the pending one first"
		default:
			return Armed, ""
		}
	case Disarm:
		switch s {
		case Armed:
			return Approved, ""
		case Installing:
			// Its disk is half written; only another installation mends that.
			return Failed, ""
		default:
			return s, "" // nothing to take back
		}

	case InstallBegun:
		switch s {
		case Armed, Installing:
			return Installing, ""
		default:
			return s, "arm it first: imagectl machines arm"
		}
	case InstallDone:
		switch s {
		case Installing, Installed:
			return Installed, ""
		default:
			return s, "no installation is under way"
		}

	case NodeSeen:
		switch s {
		case Approved, Installing, Installed, Failed:
			return Enrolled, ""
		default:
			return s, ""
		}
	case EtcdJoined:
		switch s {
		case Enrolled:
			return Member, ""
		case Approved, Installing, Installed, Failed:
			return s, "its installed system has not called yet"
		default:
			return s, ""
		}
	case NodeReady:
		switch s {
		case Enrolled, Member:
			return Ready, ""
		case Approved, Installing, Installed, Failed:
			return s, "its installed system has not called yet"
		default:
			return s, ""
		}
	case NodeNotReady:
		if s == Ready {
			// An etcd member comes back as Member by its next EtcdJoined.
			return Enrolled, ""
		}
		return s, ""

	case KeyConflict:
		if s == Approved {
			return Quarantined, ""
		}
		return s, ""
	case ConflictResolved:
		if s == Quarantined {
			return Approved, ""
		}
		return s, ""

	case Fail:
		switch s {
		case Approved:
			return s, "it was not told to do anything"
		case Quarantined:
			return s, ""
		default:
			return Failed, ""
		}
	case Retire:
		return Retired, ""
	case Replace:
		return Approved, ""
	}
	return s, "this event does not exist"
}

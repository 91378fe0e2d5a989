"""The words of the demo's commands: domains, roles and fillers of the old intents; the new ones."""

import re
from dataclasses import dataclass

CONSONANTS = "bdfghjklmnprstvwz"
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

OPENINGS = (
    *("" for _ in range(6)),
    "please",
    "can you",
    "could you please",
    "i want to",
    "i need to",
    "hey,",
    "ok,",
    "now",
    "i would like to",
    "would you",
    "let us",
)
ENDINGS = (*("" for _ in range(6)), "please", "thanks", "for me", "now", "if you can", "thank you")
ACTIONS = ("{} a {}", "{} the {}", "{} my {}", "{} {}", "{} one {}", "{} that {}", "{} our {}")
# How the clauses of an intent whose words are its own keys may run.
LITERAL = ("{} {{}}", "the {} {{}}", "with {} {{}}", "its {} is {{}}", "{{}} {}", "for {} {{}}")

# role: (kind of its value, argument keys, clauses that state it)
ROLES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "place": (
        "name",
        ("place", "venue", "site", "where", "spot", "area", "town"),
        ("at {}", "in {}", "near {}", "over at {}", "close to {}", "somewhere in {}", "around {}"),
    ),
    "origin": (
        "name",
        ("origin", "source", "start", "home", "base"),
        ("from {}", "leaving {}", "starting in {}", "out of {}", "coming from {}"),
    ),
    "target": (
        "name",
        ("dest", "target", "goal", "into", "end"),
        ("to {}", "towards {}", "headed for {}", "going to {}", "bound for {}"),
    ),
    "person": (
        "name",
        ("person", "who", "contact", "guest", "user", "friend"),
        ("with {}", "together with {}", "and tell {}", "for mr {}", "on behalf of {}", "by {}"),
    ),
    "title": (
        "title",
        ("title", "label", "item", "name", "topic", "tag"),
        ("called {}", "named {}", "titled {}", "about {}", "labelled {}", "known as {}"),
    ),
    "people": (
        "count",
        ("num", "people", "size", "seats", "group"),
        ("for {} people", "for {}", "with {} guests", "for a party of {}", "for {} of us"),
    ),
    "quantity": (
        "count",
        ("qty", "count", "units", "many", "total"),
        ("{} times", "{} of them", "{} pieces", "in a pack of {}", "all {} of those"),
    ),
    "price": (
        "count",
        ("price", "max", "budget", "cost", "limit"),
        ("under {} euros", "up to {} euros", "for {} dollars", "below {}", "costing at most {}"),
    ),
    "level": (
        "count",
        ("level", "value", "amount", "degree", "rate"),
        ("to {} percent", "at level {}", "to {}", "by {} steps", "up to {} points"),
    ),
    "time": (
        "clock",
        ("time", "hour", "when", "clock", "slot"),
        ("at {}", "around {}", "by {}", "before {}", "no later than {}", "from {} on"),
    ),
    "day": (
        "day",
        ("date", "day", "on", "due", "cal"),
        ("on {}", "for {}", "this {}", "the day of {}", "due {}", "dated {}"),
    ),
    "span": (
        "span",
        ("length", "duration", "span", "period", "wait"),
        ("for {}", "lasting {}", "over {}", "taking {}", "in {}", "within {}"),
    ),
    "code": (
        "code",
        ("code", "ref", "id", "key", "serial"),
        ("with code {}", "ref {}", "number {}", "under {}", "using {}", "marked {}"),
    ),
}

_MAKE = ("add", "create", "make", "new", "set up")
_FIND = ("find", "search", "look for", "get", "show")
_STOP = ("cancel", "drop", "remove", "delete", "call off")
_MOVE = ("move", "shift", "change", "update", "push")
_BOOK = ("book", "reserve", "arrange", "plan", "schedule")
_SEND = ("send", "mail", "share", "forward", "pass on")
_BUY = ("buy", "order", "purchase", "pick up", "take")
_PLAY = ("play", "start", "run", "open", "launch")
_TURN = ("set", "turn", "adjust", "put", "switch")
_PAY = ("pay", "settle", "transfer", "clear", "charge")
_CHECK = ("check", "read", "view", "list", "tell me")
_SAVE = ("save", "keep", "store", "note", "write")


@dataclass(frozen=True)
class Domain:
    """What can be asked for together: groups of like verbs, groups of like nouns, and roles."""

    verbs: tuple[tuple[str, ...], ...]
    nouns: tuple[tuple[str, ...], ...]
    roles: tuple[str, ...]


def _groups(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(group.split("/")) for group in text.split())


DOMAINS = (
    Domain(
        (_BOOK, _STOP),
        _groups("table/dinner room/suite hotel/stay cabin/lodge camp/tent desk/office"),
        ("place", "people", "time", "day", "span", "price", "person"),
    ),
    Domain(
        (_BUY, _FIND),
        _groups("flight/plane train/rail bus/coach taxi/cab ferry/boat trip/tour"),
        ("origin", "target", "people", "time", "day", "price", "code"),
    ),
    Domain(
        (_MAKE, _MOVE),
        _groups("meeting/call event/party task/todo alarm/alert lesson/class interview/talk"),
        ("title", "person", "time", "day", "span", "place", "people"),
    ),
    Domain(
        (_SEND, _SAVE),
        _groups("message/text email/letter photo/picture file/document report/memo list/page"),
        ("target", "person", "title", "day", "time", "code", "quantity"),
    ),
    Domain(
        (_PLAY, _STOP),
        _groups("song/track album/record film/movie podcast/show game/match radio/station"),
        ("title", "person", "span", "level", "place", "quantity", "time"),
    ),
    Domain(
        (_TURN, _CHECK),
        _groups("heater/oven lamp/bulb fan/cooler door/gate camera/sensor screen/display"),
        ("level", "place", "time", "span", "code", "title"),
    ),
    Domain(
        (_BUY, _FIND),
        _groups("shoes/boots phone/mobile book/novel cake/bread flowers/roses shirt/coat"),
        ("title", "quantity", "price", "target", "day", "code", "place"),
    ),
    Domain(
        (_PAY, _CHECK),
        _groups("bill/invoice rent/lease loan/credit card/account gift/bonus fine/tax"),
        ("person", "price", "day", "code", "target", "origin", "title"),
    ),
    Domain(
        (_CHECK, _SAVE),
        _groups("weather/forecast news/story map/route score/result stock/share traffic/road"),
        ("place", "day", "time", "title", "span", "origin", "level"),
    ),
)

# The intents of the federation: name -> (actions, slots as (key, kind, clauses))
_Slot = tuple[str, str, tuple[str, ...]]
NEW: dict[str, tuple[tuple[str, ...], tuple[_Slot, ...]]] = {
    "hold_bay": (
        ("hold a parking bay", "i must park the van", "secure a bay for my car"),
        (
            ("garage", "name", ("inside garage {}", "beneath {}")),
            ("until", "clock", ("until {}", "leaving again at {}")),
            ("plate", "code", ("plate {}", "the car is {}")),
        ),
    ),
    "log_run": (
        ("log a jog", "write down that i jogged", "i went jogging"),
        (
            ("trail", "name", ("along {}", "through {} park")),
            ("mins", "span", ("it took {}", "during {}")),
            ("pulse", "count", ("pulse {}", "heart beating at {}")),
        ),
    ),
    "refill_drug": (
        ("refill my pills", "renew the prescription", "i ran out of medicine"),
        (
            ("drug", "name", ("the drug is {}", "which is {}")),
            ("dose", "count", ("{} mg each", "dosed at {}")),
            ("pharmacy", "name", ("via the chemist {}", "dispensed by {}")),
        ),
    ),
    "water_bed": (
        ("water the garden", "sprinkle the plants", "irrigate the vegetables"),
        (
            ("zone", "name", ("zone {}", "the {} side")),
            ("litres", "count", ("using {} litres", "{} buckets full")),
            ("dusk", "clock", ("once it is {}", "as of {}")),
        ),
    ),
    "trace_parcel": (
        ("trace a parcel", "where is my package", "has the delivery arrived"),
        (
            ("waybill", "code", ("waybill {}", "the slip says {}")),
            ("carrier", "name", ("carried by {}", "handled through {}")),
            ("posted", "day", ("posted {}", "dispatched {}")),
        ),
    ),
    "hire_bike": (
        ("hire a bike", "unlock a scooter", "rent me two wheels"),
        (
            ("dock", "name", ("outside {}", "from the rack by {}")),
            ("ride", "span", ("riding {}", "back after {}")),
            ("helmet", "count", ("helmet size {}", "head width {}")),
        ),
    ),
    "raise_fault": (
        ("raise a fault", "complain that it broke", "report a defect"),
        (
            ("asset", "code", ("machine {}", "the broken unit is {}")),
            ("crew", "name", ("alert crew {}", "let team {} handle it")),
            ("urgency", "count", ("urgency {}", "ranked {} of a hundred")),
        ),
    ),
    "feed_pet": (
        ("feed the pet", "give the cat its food", "fill the dog bowl"),
        (
            ("animal", "name", ("our pet {}", "little {} is hungry")),
            ("grams", "count", ("{} grams", "weighing {}")),
            ("serve", "clock", ("served at {}", "when it strikes {}")),
        ),
    ),
}

# Everyday words, among them those of the new intents: titles in the commands of the old ones, so
# that the pretrained model can read and write each of them without knowing what it will stand for.
_EVERYDAY = """
apple river stone cloud bridge window candle pepper silver golden winter summer autumn spring forest
mountain valley island harbour castle village market kitchen mirror blanket bottle basket ladder
hammer pencil paper marble copper cotton velvet orange lemon cherry almond honey butter sugar coffee
tiger eagle rabbit dolphin spider turtle monkey panda falcon otter beaver badger wolf horse sheep
doctor teacher farmer sailor painter baker driver writer singer dancer captain soldier king queen
red green blue black white yellow purple brown quick slow bright dark loud quiet heavy light strong
weak early late north south east west above below across behind beside between under over without
walk jump swim climb throw catch carry build break repair clean wash cook bake grow cut fold lift
press pull shake smile sleep speak stand study teach think travel wait wander watch wear win wonder
check mark test count size number order sort name key code lock level range limit share group team
"""
WORDS = tuple(sorted(set(re.findall("[a-z]{2,}", _EVERYDAY + str(NEW)))))

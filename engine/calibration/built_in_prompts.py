"""32 prompts for a calibration without a list of one's own: different in subject, motion, camera, light, style and length.

Layers see other inputs for other text and other pictures, so the list is spread: people, animals, landscapes, machines, food,
abstract and animated pictures; fast, slow and hardly any motion; still, panning, tracking and handheld cameras; day, night, fog and
lamp light; 5 to 90 words. The text encoder of Wan (umT5-XXL) reads English and Chinese, so four are Chinese. None has options:
sizes, seeds and steps are those of the node.
"""

PROMPTS = (                                        # by length
    "Red kite in the wind.",
    "Waves roll onto a black beach.",
    "A grey cat yawns, close-up, soft window light.",
    "An old man laughs at the camera, wrinkles around his eyes, shallow depth of field.",
    "一只橘猫在阳光下的窗台上慢慢伸懒腰，毛发细节清晰，固定镜头。",
    "Heavy rain on a tin roof at night, static shot, a single street lamp, water runs down in bright threads.",
    "Two children chase each other through a sprinkler in a summer garden, slow motion, drops sparkle against the sun.",
    "A steam locomotive comes straight at the camera out of a tunnel, thick white smoke, the ground shakes, low angle.",
    "Macro shot of an ant that carries a leaf over rough bark, the background melts into green, the camera glides beside it.",
    "A chef tosses vegetables in a wok, flames leap up for a second, sparks and oil in the air, fast handheld camera in a "
    "crowded kitchen.",
    "Aerial view of a river delta at dawn, silver channels branch like veins through dark mud flats, the drone rises slowly and "
    "tilts down.",
    "夜晚的城市街道，霓虹灯倒映在湿漉漉的路面上，行人撑着伞匆匆走过，镜头缓慢向前推进。",
    "A woman in a yellow raincoat stands still on a pier, only her hood and the sea move, overcast sky, muted colours, wide "
    "shot, grainy film.",
    "Ink drops fall into clear water and unfold into violet and turquoise clouds, seen from the side against pure white, "
    "extreme slow motion.",
    "A brown horse gallops along the edge of a field of stubble, its mane flying, dust behind its hooves, tracking shot from a "
    "car, golden hour.",
    "Paper cut-out animation: a small boat crosses a sea of blue tissue waves, a smiling moon on a string swings above it, "
    "visible fibres and shadows, jerky frame by frame movement.",
    "A potter's hands shape wet clay on a spinning wheel, grey water runs over the fingers, the rim grows thin and wavers, "
    "close-up from above, soft daylight from the left.",
    "Time lapse of a city square from a high window: crowds flow like water, clouds race, shadows turn around the fountain, "
    "then lamps come on one by one and the sky goes from orange to deep blue.",
    "Hand-drawn cartoon of a round purple monster that juggles three apples, drops one, looks at it sadly and then eats it, "
    "thick outlines, flat colours, plain background, cheerful bouncing movement.",
    "A figure skater spins faster and faster on a dark rink under a single spotlight, ice chips fly from the blades, the camera "
    "circles the other way, her arms fold in and the sequins of the dress turn into streaks of light.",
    "Thousands of small metal spheres roll over a landscape of folded copper plates, meet, part again and settle into a spiral "
    "that slowly breathes, reflections of a bright studio ceiling, no people, no text, precise three-dimensional rendering.",
    "中国水墨画风格的动画：群山在云雾中若隐若现，一叶小舟从画面左侧缓缓划过，几只白鹭飞起，墨色由浓到淡，留白很多，镜头横向平移。",
    "A night market in the rain, seen over the shoulder of a girl with a blue umbrella: steam from the stalls, coloured bulbs, "
    "puddles that break under passing feet, somebody turns and waves, the focus goes from the umbrella to a pan of noodles.",
    "Inside a library that has been flooded to the knee, books float past the shelves, a goldfish swims between them, shafts of "
    "afternoon light move across the water and over the ceiling, the camera drifts just above the surface, quiet, dreamlike, "
    "fine dust in the air.",
    "A flock of starlings over a winter marsh at dusk gathers, tears apart and gathers again in shapes like smoke, reflected in "
    "still water between the reeds. Long lens, no cut, the horizon stays level in the lower third, the last pink light fades to "
    "grey.",
    "A cyclist rides down a steep forest trail, first-person view from the helmet: roots, sharp turns, a jump over a fallen "
    "trunk, branches whip past, the picture shakes at every landing, sun flickers through the leaves so fast that the ground "
    "seems to strobe.",
    "A dancer in a loose white shirt moves through an empty factory hall. She runs three steps, falls to her knees, slides, "
    "rolls and is up again, while dust rises from the concrete and glows in the beams from broken windows. The camera follows "
    "on a dolly, always one step late.",
    "一位年轻的女工匠在木工坊里打磨一把小提琴，木屑在斜射的光线中飞舞，她停下来吹去灰尘，仔细端详弧形的琴身，再用指节轻轻敲击听它的声音。温暖的色调，浅景深，镜头从手部特写慢慢拉远到整个房间。",
    "Close portrait of an elderly fisherwoman on her boat before sunrise. She mends a green net without looking at it, talks to "
    "somebody outside the picture and breaks into a smile. Breath is visible in the cold air. Behind her, out of focus, harbour "
    "lights swing slowly with the swell. Natural skin, no make-up, handheld, 85 mm, cool blue shadows and one warm lamp.",
    "A glass greenhouse on the surface of a red desert planet, two small moons in a dusty sky. Inside, a gardener in a patched "
    "suit waters rows of lettuce and tomatoes; outside, a storm front of rust-coloured sand comes closer until grains begin to "
    "tick against the panes. The gardener looks up, sets the can down and pulls a lever: metal shutters close one after the "
    "other and the warm light of the lamps remains.",
    "Claymation of a village baker, a stout badger with flour on his nose, who pulls a tray of buns from the oven, burns his "
    "paw, hops around the table and knocks over a sack. A white cloud fills the room. When it settles, everything is covered, a "
    "mouse in a blue scarf peeps out of a bun and sneezes, and both start to laugh. Fingerprints show in the clay, warm light, "
    "wooden toys for furniture, camera at table height.",
    "A long single take at a harbour festival in the evening: the camera starts on a brass band, brown hands and golden valves, "
    "passes under a row of paper lanterns, follows a running dog between the legs of the crowd, rises over the quay where "
    "couples dance on wet stones, turns to the ships with their strings of lights and ends, quite still, on a child on her "
    "father's shoulders who holds a sparkler and watches the first firework of the night open, green and gold, over the dark "
    "water.",
)

STRIDE = 11                                        # has no factor with 32: each once, and a few of any start differ in length
BUILT_IN = "\n".join(PROMPTS[place * STRIDE % len(PROMPTS)] for place in range(len(PROMPTS)))   # as a file of prompt_file.py's form

// The labels that come with blip2rt, edited by hand: "parents: labels with their synonyms".
#pragma once

#include <string_view>

namespace blip2rt {

inline constexpr std::string_view kEverydayLabels = R"(
animal: dog/puppy, cat/kitten, horse/pony/foal/colt, bear, giraffe, elephant
animal: cow/cattle/bull/calf/ox, zebra, sheep/lamb/ram/ewe, herd, mouse/rat, polar bear, goat, flock
animal: rabbit/bunny, deer/elk/moose/antelope, monkey/ape/gorilla/chimpanzee, tiger, panda, camel
animal: pig/piglet/hog, donkey/mule, insect/bug, lion, bison/buffalo, frog/toad, snake
animal: turtle/tortoise, llama/alpaca, squirrel/chipmunk, rhino/rhinoceros, lizard/iguana, wolf
animal: leopard/cheetah, seal/sea lion, spider, fox, kangaroo, bird
animal > bird: chicken/hen/rooster, duck/duckling/mallard, seagull/gull, pigeon, turkey, swan
animal > bird: eagle/hawk/falcon, parrot/parakeet/macaw, ostrich/emu, owl, goose/gosling, pelican
animal > bird: crow/raven, hummingbird, flamingo, penguin, peacock, heron, stork
animal > dog: greyhound, bulldog/pug, labrador/golden retriever, german shepherd, poodle
animal > dog: collie/sheepdog, terrier, dalmatian, chihuahua
animal > insect: butterfly/moth, bee/wasp, ladybug/beetle
animal > sea animal: fish/goldfish, shark, octopus, whale, dolphin, crab, lobster
appliance: refrigerator/fridge, stove, oven, microwave, blender, dryer, toaster, freezer, dishwasher
appliance: washing machine, coffee maker/coffee machine, mixer, sewing machine
building: tower, house, store/shop, restaurant, clock tower, bridge, bar/pub, hotel, school, church
building: tent, barn, garage, tunnel, bank, stadium, museum, hospital, library, cafe, gym, castle
building: cabin, bakery, skyscraper, hut, gas station, supermarket/grocery store, lighthouse
building: factory, warehouse, mall, apartment building, shed, cathedral, office building, temple
building: palace, cottage, ruins, greenhouse, theater, windmill, fort, mansion, pyramid
clothing: shirt, hat, tie/necktie, suit, jacket, glasses/eyeglasses, watch/wristwatch, dress/gown
clothing: helmet, uniform, shorts, shoe, coat, pants/trousers, sunglasses, cap/baseball cap, costume
clothing: jeans, glove/mitten, ring, skirt, sweater, vest, t-shirt, wetsuit, boot, jersey, mask
clothing: hoodie/sweatshirt, headphones, scarf, swimsuit/swim trunks, bikini, necklace, tank top
clothing: goggles, flip flops/sandals, bow tie, apron, belt, robe, tuxedo, heels/high heels
clothing: headband, pajamas, sneakers, earrings, socks, jewelry, bracelet, wig, wedding dress
clothing: turban, veil, blouse, kimono
container: box/cardboard box, bag, luggage, suitcase, backpack, handbag/purse, shopping cart, barrel
container: crate, bin, package, plastic bag, cooler, paper bag, shopping bag, briefcase, wallet
container: dumpster, pouch, sack, bird cage
drink: wine, coffee, beer, soda/coke, milk, juice, tea, orange juice, water bottle, alcohol
drink: milkshake/smoothie, champagne, red wine, cocktail, lemonade
electronics: laptop, computer, telephone/phone, camera, cell phone/cellphone/smartphone/mobile phone
electronics: television/tv, remote/remote control, keyboard, video game, screen, monitor
electronics: wire/cable/cord, game controller/wii remote, microphone, computer mouse, speaker
electronics: tablet, printer, cd, alarm clock, video camera, radio, stereo, projector
event: game, show, wedding, christmas, party, parade, contest/competition, meeting, ceremony
event: festival, halloween, birthday party, protest, celebration, fireworks, performance, concert
event: sporting event
food: pizza, sandwich, hot dog/hotdog, meat, cheese, bread, french fries/fries, meal, salad
food: chocolate, dinner, egg, sauce, bun, rice, broth/soup, breakfast, slice of pizza, picnic
food: pasta/spaghetti, hamburger/burger/cheeseburger, bean, lunch, pie, cookie, sausage, snack
food: mustard, butter, bacon, chips, pepperoni, toast, pickle, pancake, noodles, ketchup, steak
food: beef, crust, ham, bagel, peanut butter, olives, waffle, cracker, nut, dip, shrimp, stew/curry
food: cereal, syrup, pork, whipped cream, pita/tortilla, yogurt, sushi, biscuit, honey, sub sandwich
food: jam, seafood, croissant, meatball, burrito, gravy, spices, barbecue, tofu, oatmeal, omelet
food: taco, fruit, vegetable
food > dessert: cake, donut/doughnut, birthday cake, pastry, frosting/icing, wedding cake, cupcake
food > dessert: ice cream, candy, muffin, sprinkles, cheesecake, ice cream cone, pudding
food > fruit: orange, banana, apple, lemon, strawberry, tomato, pineapple, lime, pear, grapes
food > fruit: berries, watermelon, blueberry, cherry, peach, coconut, avocado, grapefruit, kiwi
food > fruit: tangerine, raspberry, melon/cantaloupe, plum
food > vegetable: broccoli, carrot, onion, mushroom, bell pepper/pepper, lettuce, corn
food > vegetable: pumpkin/squash, potato, chili, spinach, cucumber, green beans, cauliflower, peas
food > vegetable: ginger, asparagus, garlic, celery, mashed potatoes, cabbage, herbs, radish
food > vegetable: zucchini, sprouts, parsley, kale, sweet potato, turnip
furniture: table, bed, bench, chair, couch/sofa, desk, counter, cabinet, shelf, dining table
furniture: coffee table, stool, picnic table, bookshelf/bookcase, dresser, chest, cupboard, drawer
furniture: mattress, high chair, bunk bed, crib/cradle, nightstand, footstool/ottoman, headboard
furniture: rocking chair, recliner, hammock, bar stool, armchair, tv stand
home: wall, clock, toilet, window, sink, light, floor, mirror, vase, door, bathtub/tub, shower
home: stairs/staircase/steps, basket, painting, blanket, candle, pillow, toothbrush, towel, tile
home: lamp, fireplace, curtain, rug, frame/picture frame, urinal, fan, ceiling, carpet, doorway
home: bucket, trash can/garbage can, toilet paper, sheets, bedspread/quilt, mat, poster
home: shower curtain, key, hair dryer, toothpaste, cushion, soap, faucet, chandelier, ladder
home: comb/hairbrush, tablecloth, blinds, ceiling fan, laundry, broom, hanger, wallpaper
home: medicine cabinet, radiator, light bulb, lock, mop, plant pot, sponge, razor
kind of picture: black and white photo, close-up, landscape, advertisement, text, portrait
kind of picture: pattern, collage, old photo, drawing, aerial view, logo, silhouette
kind of picture: cartoon, cityscape, graphic, mosaic, book cover, website, still life, night scene
kitchenware: plate, glass, bowl, bottle, cup, tray, dish, pan/frying pan/skillet, pot, can, knife
kitchenware: fork, pitcher/jug, spoon, wine glass, cutting board, mug, jar, lid, straw, utensils
kitchenware: platter, napkin, coffee cup, wine bottle, silverware/cutlery, chopsticks, kettle
kitchenware: tea kettle/teapot, spatula, baking sheet, ladle
musical instrument: guitar, piano, drum, violin, accordion, flute, bagpipes, trumpet
nature: water, field, snow, beach, mountain, sky, ocean/sea, wave, fire/flames, rock/boulder, hill
nature: dirt, forest/woods, night, river, sand, lake, surf, sun, path, blue sky, shore, rain, ice
nature: pasture, cloud, pond, cliff, sunset, desert, winter, smoke, reflection, cloudy sky, stream
nature: hillside, mud, island, puddle, star, steam, waterfall, rainbow, shadow, bay, jungle, valley
nature: meadow, countryside, moon, sunlight, storm, mountain range, creek, cave, wilderness
nature: fog/mist, autumn, dust, coast, horizon, sunrise, canyon, coral, glacier, savanna
office supplies: book, paper, pen, newspaper, sticker, magazine, notebook, pencil, map, marker
office supplies: letter, chalkboard/blackboard, document, calendar, envelope, folder, postcard
part of a building: fence, brick, railing, brick wall, ledge, gate, roof, deck, patio, wooden floor
part of a building: balcony, porch, window sill, column/pillar, steeple, arch, awning, dome
part of a building: stained glass, elevator, garage door, escalator
part of a vehicle: engine, wheel, oar/paddle, sail, tire, propeller, headlights, steering wheel
part of a vehicle: windshield, handlebars, dashboard, license plate, mast, cockpit
part of an animal: trunk, wing, paw, tail, horns, fur, beak, feathers, tusk, mane
part of the body: hand, back, head, mouth, face, hair, arm, smile, leg, eye, teeth, neck, ear
part of the body: shoulder, tongue, nose, foot, beard, finger, tattoo, lips, mustache, belly
part of the body: ponytail, toe
person: man/guy/gentleman, people/person, woman/lady, boy, girl, child/kid, couple, group of people
person: baby/infant/newborn, crowd, passenger, family, audience/spectators/onlookers, toddler
person: elderly person/old man/old woman, pedestrian, friends, teenager, tourist
person > athlete: baseball player, skier, tennis player, skateboarder, surfer, snowboarder, rider
person > athlete: batter, cyclist/biker, catcher, football player, soccer player, motorcyclist
person > athlete: basketball player, climber, jockey, runner/jogger, skater, swimmer, wrestler
person > athlete: goalie, baseball pitcher, boxer, gymnast, volleyball player
person > occupation: bride, groom, referee/umpire, chef/cook, police officer/policeman, officer
person > occupation: model, cowboy, hiker, musician/band, student, driver, vendor, soldier
person > occupation: photographer, clown, farmer, guard, athlete, queen, artist/painter
person > occupation: fireman/firefighter, king, dancer, actor, businessman, doctor, lifeguard
person > occupation: fisherman, nurse, pilot, waiter/waitress, singer, sailor, construction worker
person > occupation: monk, teacher, bartender
place: street, road, city, park, sidewalk, swimming pool/pool, runway/tarmac, tennis court
place: parking lot, airport, intersection, enclosure, yard, zoo, dock/pier, market, train station
place: railroad tracks/train tracks, garden, trail, platform, plaza/square, town, subway, lawn
place: stall, railroad, skate park, baseball field, harbor/marina, cage, playground, bus stop
place: ski slope, farm, highway, pavement, stage, backyard, fair/carnival, crosswalk, skyline
place: courtyard, driveway, neighborhood, resort, alley, soccer field, ski lift, village, rodeo
place: food truck, bus station, boardwalk, amusement park, dugout, construction site
place: basketball court, race track, bleachers, farmers market, parking garage, aquarium, corral
place: football field, campsite/campground, cemetery, golf course, ice rink, building, room
plant: grass, tree, flower, leaf/leaves, branch, bush/shrub, hay, log, flower pot/potted plant
plant: palm tree, christmas tree, bouquet, bamboo, pine tree, weeds, seed, tree trunk, vine, hedge
plant: wheat, wreath, cactus, moss, fern, straw bale/hay bale
plant > flower: rose, tulip, sunflower, lavender, dandelion, daisy, orchid
room: bathroom, kitchen, living room, bedroom, office, dining room, hotel room, restroom
room: hallway/corridor, classroom, lobby, closet, studio, cubicle, cafeteria, conference room
room: waiting room, basement, nursery, laundry room
sport: tennis, baseball, soccer, skiing, swimming, race, surfing, football
sport: basketball, skateboarding, hockey, skating, snowboarding, fishing, sailing, golf
sport: hiking, volleyball, rock climbing, diving, wrestling, bmx, rugby, motocross, cricket, boxing
sport: polo, parasailing, kayaking, windsurfing, jogging, wakeboarding, bowling, rafting, yoga
sport: sledding, ice skating, marathon, water skiing, karate, frisbee game, cycling, gymnastics
sport: lacrosse
sports equipment: ball, skateboard, frisbee, kite, baseball bat/bat, surfboard, racket/racquet, skis
sports equipment: tennis racket/tennis racquet, tennis ball, ramp, snowboard, soccer ball, net, bow
sports equipment: hurdle, life jacket/life vest, goal, ski poles, baseball glove
sports equipment: fishing rod/fishing pole, rollerblades, saddle, medal, trophy, hockey stick
sports equipment: volleyball net
street furniture: sign, fire hydrant/hydrant, traffic, pole, stop sign, street sign, traffic light
street furniture: statue, parking meter, graffiti, curb, fountain, street light, sculpture
street furniture: road sign, barrier, billboard, mural, power lines, bike rack, lamp post
street furniture: traffic cone, sign post, umbrella stand
thing: selfie, umbrella/parasol, flag, cross, photograph, brush, trash/garbage, leash, machine
thing: dog collar/collar, pipe, card, cigarette, ribbon, gift/present, bell, diamond, feather
thing: banner, makeup, skull, bird feeder, coin, crown, money, nest, shell, ornament, ticket, cane
thing: mannequin, tripod, lipstick, pacifier, snowman, christmas lights, globe, skeleton, fence post
thing: badge, telescope, lighter, pill, cigar, food
tool: scissors, rope, chain, string, hose, tools, gun, tape, scale, sword, shovel, nail, hammer
tool: needle, wheelbarrow, ruler, axe, hook, thread
toy: teddy bear, toy, swing, stuffed animal, slide, balloon, doll, lego/blocks, trampoline, bubbles
toy: toy car, hula hoop, carousel, ferris wheel, roller coaster, toy train, chess, playing cards
toy: puppet, puzzle
vehicle: car/automobile, bus, bicycle/bike, motorcycle/motorbike, truck, cart, wagon/carriage
vehicle: double decker bus, scooter/moped, van, dirt bike, tank, school bus, trolley/tram/streetcar
vehicle: sled/sleigh, taxi/cab, trailer, fire truck/fire engine, race car, jeep, wheelchair
vehicle: pickup truck, stroller, atv, tractor, semi truck, tow truck, suv, tricycle, garbage truck
vehicle: ambulance, police car, minivan, convertible, golf cart, forklift, train, boat
vehicle > aircraft: airplane/plane/airliner, jet, fighter jet, parachute, hot air balloon
vehicle > aircraft: helicopter, biplane, glider, rocket
vehicle > boat: ship, canoe, sailboat, raft, kayak, cruise ship, ferry, fishing boat, rowboat, yacht
vehicle > boat: motorboat/speedboat, barge, tugboat
vehicle > train: passenger train, train car, locomotive, subway train, steam engine/steam train
vehicle > train: freight train
)";

}  // namespace blip2rt
